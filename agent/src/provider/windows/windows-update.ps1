# What patchwarden-agent asks Windows, for Windows PowerShell 5.1. The question is JSON in PATCHWARDEN_QUESTION; the answer is
# JSON on the output, each document in a line of its own. It is started with -EncodedCommand and takes nothing else as code.
#
# Windows Update Agent: https://learn.microsoft.com/windows/win32/wua_sdk/portal-client

$ErrorActionPreference = 'Stop'
$ProgressPreference = 'SilentlyContinue'
[Console]::OutputEncoding = New-Object System.Text.UTF8Encoding $false

# Beyond these an answer helps nobody.
$MostUpdates = 500
$MostEntries = 5000

function Say($answer) {
    [Console]::Out.WriteLine((ConvertTo-Json -InputObject $answer -Depth 6 -Compress))
}

# COM's numbers and strings as they are; $null stays.
function Strings($collection) {
    $all = @()
    foreach ($one in $collection) { $all += [string]$one }
    , $all
}

function Describe($update) {
    $categories = @()
    foreach ($category in $update.Categories) { $categories += [string]$category.CategoryID }
    $released = $null
    if ($update.LastDeploymentChangeTime) {
        # In UTC. A language of its own may have other signs between the numbers.
        $invariant = [Globalization.CultureInfo]::InvariantCulture
        $released = $update.LastDeploymentChangeTime.ToString('yyyy-MM-ddTHH:mm:ssZ', $invariant)
    }
    @{
        id             = [string]$update.Identity.UpdateID
        revision       = [int64]$update.Identity.RevisionNumber
        title          = [string]$update.Title
        kbs            = Strings $update.KBArticleIDs
        cves           = Strings $update.CveIDs
        severity       = [string]$update.MsrcSeverity
        categories     = $categories
        released       = $released
        maxBytes       = [int64]$update.MaxDownloadSize
        diskMegabytes  = [int64]$update.RecommendedHardDiskSpace
        rebootBehavior = [int]$update.InstallationBehavior.RebootBehavior
        impact         = [int]$update.InstallationBehavior.Impact
        asksUser       = [bool]$update.InstallationBehavior.CanRequestUserInput
        isInstalled    = [bool]$update.IsInstalled
        isHidden       = [bool]$update.IsHidden
        isDownloaded   = [bool]$update.IsDownloaded
        isOptional     = [bool]$update.BrowseOnly
        rebootRequired = [bool]$update.RebootRequired
    }
}

function DescribeAll($updates) {
    $all = @()
    foreach ($update in $updates) {
        if ($all.Count -ge $MostUpdates) { break }
        $all += Describe $update
    }
    , $all
}

function NewSession {
    $session = New-Object -ComObject Microsoft.Update.Session
    $session.ClientApplicationID = 'patchwarden-agent'
    $session
}

# Exactly one update by its identity, from what Windows knows already.
function Find($session, $wanted) {
    $guid = [guid]$wanted.id
    $searcher = $session.CreateUpdateSearcher()
    $searcher.Online = $false
    foreach ($update in $searcher.Search("UpdateID='$guid'").Updates) {
        if ([int64]$update.Identity.RevisionNumber -eq [int64]$wanted.revision) { return $update }
    }
}

function One($update) {
    $one = New-Object -ComObject Microsoft.Update.UpdateColl
    [void]$one.Add($update)
    , $one
}

function Values($path) {
    Get-ItemProperty -LiteralPath $path -ErrorAction SilentlyContinue
}

function Programs {
    $places = @(
        @('HKLM:\SOFTWARE\Microsoft\Windows\CurrentVersion\Uninstall', ''),
        @('HKLM:\SOFTWARE\WOW6432Node\Microsoft\Windows\CurrentVersion\Uninstall', 'x86')
    )
    $all = @()
    foreach ($place in $places) {
        if (-not (Test-Path -LiteralPath $place[0])) { continue }
        foreach ($key in (Get-ChildItem -LiteralPath $place[0])) {
            if ($all.Count -ge $MostEntries) { break }
            $name = $key.GetValue('DisplayName')
            # What belongs to another entry, as an update of a program does, is told with that.
            if (-not $name -or $key.GetValue('ParentKeyName')) { continue }
            $all += @{
                name      = [string]$name
                version   = [string]$key.GetValue('DisplayVersion')
                publisher = [string]$key.GetValue('Publisher')
                arch      = $place[1]
            }
        }
    }
    , $all
}

# Where Windows searches: the service, and the approval server that a policy names.
function Source {
    $services = @()
    foreach ($service in (New-Object -ComObject Microsoft.Update.ServiceManager).Services) {
        if ($service.IsDefaultAUService) { $services += [string]$service.Name }
    }
    $policy = Values 'HKLM:\SOFTWARE\Policies\Microsoft\Windows\WindowsUpdate'
    $policyAu = Values 'HKLM:\SOFTWARE\Policies\Microsoft\Windows\WindowsUpdate\AU'
    $wsus = $null
    if ($policyAu -and $policyAu.UseWUServer -eq 1 -and $policy -and $policy.WUServer) { $wsus = [string]$policy.WUServer }
    @{ service = [string]($services -join ', '); wsus = $wsus }
}

function Inventory($question) {
    $session = NewSession
    $searcher = $session.CreateUpdateSearcher()
    $searcher.Online = [bool]$question.online
    $criteria = "IsInstalled=0 and IsHidden=0 and Type='Software'"
    $searchError = $null
    try {
        $found = $searcher.Search($criteria)
    } catch {
        if (-not $question.online) { throw }
        $searchError = Failure $_
        $searcher.Online = $false
        $found = $searcher.Search($criteria)
    }
    $warnings = @()
    foreach ($warning in $found.Warnings) { $warnings += @{ hresult = [int64]$warning.HResult; message = [string]$warning.Message } }

    $searcher.Online = $false
    $installed = $searcher.Search("IsInstalled=1 and Type='Software'")

    $source = Source
    $renames = Values 'HKLM:\SYSTEM\CurrentControlSet\Control\Session Manager'
    $reboot = @{
        system      = [bool](New-Object -ComObject Microsoft.Update.SystemInfo).RebootRequired
        updateKey   = Test-Path 'HKLM:\SOFTWARE\Microsoft\Windows\CurrentVersion\WindowsUpdate\Auto Update\RebootRequired'
        servicing   = Test-Path 'HKLM:\SOFTWARE\Microsoft\Windows\CurrentVersion\Component Based Servicing\RebootPending'
        fileRenames = [bool]($renames -and $renames.PendingFileRenameOperations)
    }

    $os = Get-CimInstance -ClassName Win32_OperatingSystem
    $bios = Get-CimInstance -ClassName Win32_BIOS
    $computer = Get-CimInstance -ClassName Win32_ComputerSystem
    $drivers = @()
    $told = @('DeviceName', 'DriverVersion', 'DriverProviderName')
    foreach ($driver in (Get-CimInstance -ClassName Win32_PnPSignedDriver -Property $told)) {
        if ($drivers.Count -ge $MostEntries) { break }
        if (-not $driver.DeviceName -or -not $driver.DriverVersion) { continue }
        $drivers += @{
            name     = [string]$driver.DeviceName
            version  = [string]$driver.DriverVersion
            provider = [string]$driver.DriverProviderName
        }
    }
    $hotfixes = @()
    foreach ($fix in (Get-CimInstance -ClassName Win32_QuickFixEngineering)) { $hotfixes += [string]$fix.HotFixID }

    Say @{
        os         = @{ caption = [string]$os.Caption; version = [string]$os.Version }
        bios       = @{ version = [string]$bios.SMBIOSBIOSVersion; manufacturer = [string]$bios.Manufacturer }
        computer   = @{ manufacturer = [string]$computer.Manufacturer; model = [string]$computer.Model }
        updates    = DescribeAll $found.Updates
        cut        = [bool]($found.Updates.Count -gt $MostUpdates)
        resultCode = [int]$found.ResultCode
        warnings   = $warnings
        error      = $searchError
        installed  = DescribeAll $installed.Updates
        source     = $source
        reboot     = $reboot
        programs   = Programs
        drivers    = $drivers
        hotfixes   = $hotfixes
    }
}

function State($question) {
    $session = NewSession
    $searcher = $session.CreateUpdateSearcher()
    $searcher.Online = $false
    $all = @()
    foreach ($id in $question.ids) {
        $guid = [guid]$id
        foreach ($update in $searcher.Search("UpdateID='$guid'").Updates) { $all += Describe $update }
    }
    Say @{ updates = $all; source = Source }
}

# One after the other: one that fails does not take the others with it.
function Act($question) {
    $session = NewSession
    foreach ($wanted in $question.updates) {
        $result = @{ id = [string]$wanted.id; revision = [int64]$wanted.revision; step = 'find'; resultCode = 0; hresult = 0; rebootRequired = $false }
        try {
            $update = Find $session $wanted
            # WU_E_NO_UPDATE, as Windows itself calls it.
            if (-not $update) { $result.hresult = -2145124316; Say $result; continue }
            if (-not $update.EulaAccepted) { $update.AcceptEula() }
            if (-not $update.IsDownloaded) {
                $result.step = 'download'
                $downloader = $session.CreateUpdateDownloader()
                $downloader.Updates = One $update
                $downloaded = $downloader.Download().GetUpdateResult(0)
                $result.resultCode = [int]$downloaded.ResultCode
                $result.hresult = [int64]$downloaded.HResult
            } else {
                $result.resultCode = 2
            }
            if ($question.ask -eq 'install' -and ($result.resultCode -eq 2 -or $result.resultCode -eq 3)) {
                $result.step = 'install'
                $result.resultCode = 0
                $installer = $session.CreateUpdateInstaller()
                $installer.ForceQuiet = $true
                $installer.AllowSourcePrompts = $false
                $installer.Updates = One $update
                $installed = $installer.Install().GetUpdateResult(0)
                $result.resultCode = [int]$installed.ResultCode
                $result.hresult = [int64]$installed.HResult
                $result.rebootRequired = [bool]$installed.RebootRequired
            }
        } catch {
            $failure = Failure $_
            $result.resultCode = 4
            $result.hresult = $failure.hresult
            $result.message = $failure.message
        }
        Say $result
    }
    Say @{ done = $true }
}

function Failure($record) {
    $exception = $record.Exception
    while ($exception.InnerException) { $exception = $exception.InnerException }
    @{ hresult = [int64]$exception.HResult; message = [string]$exception.Message }
}

try {
    $question = ConvertFrom-Json $env:PATCHWARDEN_QUESTION
    switch ($question.ask) {
        'inventory' { Inventory $question }
        'state' { State $question }
        'download' { Act $question }
        'install' { Act $question }
        default { throw "no question: $($question.ask)" }
    }
} catch {
    Say @{ failure = Failure $_ }
    exit 1
}
