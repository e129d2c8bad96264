# What the agent asks of dnf 4, through dnf's own documented API: dnf is a Python program, so where there is one there are its
# modules. Given to the interpreter that runs dnf, as `python -I -c SCRIPT QUESTION ARGUMENT...`:
#
#   refresh                                asks every repository what is new; says which do not answer
#   scan BOOT                              what is offered; BOOT is when the machine started, in seconds since 1970
#   plan forward|back PACKAGE...           what dnf would do to bring these packages to these versions
#   rehearse forward|back DIRECTORY PACKAGE...
#                                          checks signatures and rpm's own test of that, on the files that lie there
#   repair forward|back DIRECTORY PACKAGE...
#                                          what an interrupted run that was to bring these packages to these versions left in
#                                          two versions, and what dnf would do beside to complete it
#   files PACKAGE...                       the files of these versions, as far as they are offered
#   download DIRECTORY PACKAGE...          brings them there
#   history                                dnf's last transactions, the earliest first
#   several                                names of packages of which several versions are kept
#
# A PACKAGE is three words: name, architecture, [EPOCH:]VERSION-RELEASE. The answer is one JSON object. Nothing of the system
# changes but dnf's own cache.
import json
import os
import pwd
import re
import resource
import sys

# Plugins print where they like: the answer has standard output for itself.
answer = os.fdopen(os.dup(1), 'w')
os.dup2(2, 1)

import tempfile

import dnf
import dnf.exceptions
import dnf.repo
import hawkey
import libdnf.transaction
import libdnf.utils

KINDS = {hawkey.ADVISORY_SECURITY: 'security', hawkey.ADVISORY_BUGFIX: 'bugfix',
         hawkey.ADVISORY_ENHANCEMENT: 'enhancement', hawkey.ADVISORY_NEWPACKAGE: 'newpackage'}


# The most that the updateinfo of one repository may become once it is unpacked: that of the largest has some hundred MB.
MAX_UPDATEINFO = 1 << 30


class Refused(Exception):
    """What is asked for is not possible, by the packages that it is asked for."""


def opened():
    base = dnf.Base()
    conf = base.conf
    conf.read()
    if conf.substitutions.get('releasever') is None:
        # A system that does not say which release it is: repositories that do not ask work all the same.
        conf.substitutions.pop('releasever', None)
    conf.substitutions.update_from_etc(conf.installroot, varsdir=conf.varsdir)
    conf.timeout, conf.retries = 20, 2
    # What the command to install is told as well: exactly what is asked for, and nothing that is only suggested.
    conf.best, conf.install_weak_deps, conf.clean_requirements_on_remove = True, False, False
    base.init_plugins()
    base.pre_configure_plugins()
    base.read_all_repos()
    base.configure_plugins()
    return base


def refresh(base):
    problems = []
    for repo in base.repos.iter_enabled():
        repo.metadata_expire = 0
        try:
            repo.load()
        except dnf.exceptions.RepoError as error:
            problems.append('%s: %s' % (repo.id, error))
    return {'problems': problems}


def filled(base):
    for repo in base.repos.iter_enabled():
        # What is in the cache counts, however old; when to ask the repositories is the agent's business.
        repo.metadata_expire = -1
        repo.skip_if_unavailable = True
        # Also where there is no cache: a repository that never answers would hold up everything.
        repo._repo.setSyncStrategy(dnf.repo.SYNC_ONLY_CACHE)
    base.fill_sack()
    return base.sack


def hexadecimal(package):
    kind, digest = package.chksum or (None, b'')
    return digest.hex() if kind == hawkey.CHKSUM_SHA256 else ''


def described(package, installed=None, rivals=()):
    return {
        'name': package.name, 'arch': package.arch, 'version': package.evr, 'source': package.sourcerpm or '',
        'repository': package.reponame, 'sha256': hexadecimal(package), 'size': package.downloadsize,
        'unpacked': package.installsize, 'file': os.path.basename(package.location or ''),
        'local': package.localPkg() if is_local(package) else None,
        'old': installed.evr if installed else None, 'rivals': sorted({rival.reponame for rival in rivals}),
    }


def is_local(package):
    address = package.remote_location(schemes=('file', 'http', 'https', 'ftp')) or ''
    return address.startswith('file:')


def latest(query):
    return list(query.filter(upgrades_by_priority=True).filter(latest_per_arch_by_priority=True))


def predecessor(installed, package):
    """The newest installed package that this one is a newer or an older version of."""
    same = [old for old in installed if old.name == package.name]
    return max([old for old in same if old.arch == package.arch] or (same if len(same) == 1 else []), default=None)


def told(advisory):
    return {'id': advisory.id, 'kind': KINDS.get(advisory.type, 'unknown'), 'severity': advisory.severity or '',
            'title': advisory.title or '', 'updated': int(advisory.updated.timestamp()) if advisory.updated else 0,
            'cves': sorted({r.id for r in advisory.references if r.type == hawkey.REFERENCE_CVE and r.id})}


def unpacked(path, place):
    """Where the content of a repository's file lies unpacked."""
    if not path.endswith(('.gz', '.xz', '.bz2', '.zst', '.zck', '.lzma')):
        return path
    plain = os.path.join(place, 'unpacked')
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # What a file of some KB unpacks to fills any disk, and nothing else limits it: writing more fails with EFBIG.
    soft = MAX_UPDATEINFO if before[0] == resource.RLIM_INFINITY else min(MAX_UPDATEINFO, before[0])
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, before[1]))
    try:
        libdnf.utils.decompress(path, plain, 0o600)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    return plain


# Of an advisory its id comes before its packages.
ID_OR_REBOOT = re.compile(rb'<id>([^<]{1,300})</id>|<reboot_suggested\s*(?:/>|>\s*(?:True|true|1)\s*<)')


def suggesting(file, wanted):
    """Of these advisories those in the file that say that a restart is suggested."""
    found, current, rest = set(), None, b''
    while True:
        text = file.read(1 << 20)
        if not text:
            return found
        text, end = rest + text, 0
        for match in ID_OR_REBOOT.finditer(text):
            end = match.end()
            if match.group(1):
                current = match.group(1).decode('utf-8', 'replace').strip()
            elif current in wanted:
                found.add(current)
        # One that the end cuts in two is no longer than that.
        rest = text[max(end, len(text) - 4096):]


def rebooting(base, wanted):
    """Which of these advisories say that a restart is suggested, and what could not be read of that: hawkey does not tell,
    their file does."""
    found, problems = set(), []
    for repo in base.repos.iter_enabled() if wanted else ():
        path = repo.get_metadata_path('updateinfo')
        if not path or not os.path.exists(path):
            continue
        try:
            with tempfile.TemporaryDirectory(prefix='patchwarden-') as place, open(unpacked(path, place), 'rb') as file:
                found |= suggesting(file, wanted)
        except (OSError, RuntimeError) as error:
            problems.append('%s: which of its updates need a restart is not known: %s' % (repo.id, error))
    return found, problems


def in_order(packages):
    """By what counts where several repositories offer the same."""
    return sorted(packages, key=lambda package: (package.repo.priority, package.repo.cost, package.reponame))


def once(packages):
    """What several repositories offer is offered once: by the one that `exact` takes."""
    found = {}
    for package in in_order(packages):
        found.setdefault((package.name, package.arch), package)
    return list(found.values())


def all_installed(sack):
    return sack.query(flags=hawkey.IGNORE_EXCLUDES).installed()


def advisories_of(sack, packages, how):
    """The advisories of each of these packages, by name and architecture, with the version that each is about. In one pass:
    to ask for each package goes through all advisories each time."""
    found = {}
    if packages:
        query = sack.query(flags=hawkey.IGNORE_EXCLUDES).filter(pkg=packages)
        for entry in query.get_advisory_pkgs(how):
            found.setdefault((entry.name, entry.arch), []).append((entry.evr, entry.get_advisory(sack)))
    return found


def scan(base, boot):
    sack = filled(base)
    installed = list(all_installed(sack))
    offered = once(latest(sack.query()))
    known = {(p.name, p.arch) for p in offered}
    # Excluded by dnf.conf, by a repository's file or by a plugin such as versionlock; modules are left as they are.
    hidden = [p for p in once(latest(sack.query(flags=hawkey.IGNORE_REGULAR_EXCLUDES))) if (p.name, p.arch) not in known]
    pairs = [(p, predecessor(installed, p), held) for held, group in ((False, offered), (True, hidden)) for p in group]
    pairs = [(package, old, held) for package, old, held in pairs if old is not None]
    own = advisories_of(sack, [package for package, _, _ in pairs], hawkey.EQ)
    later = advisories_of(sack, [old for _, old, _ in pairs], hawkey.GT)
    updates, advisories = [], {}
    for package, old, held in pairs:
        key = (package.name, package.arch)
        exactly = {a.id: a for evr, a in own.get(key, ()) if sack.evr_cmp(evr, package.evr) == 0}
        # What the versions between the installed one and this one fix is fixed by this one, too.
        passed = {a.id: a for evr, a in later.get(key, ()) if sack.evr_cmp(evr, package.evr) <= 0}
        passed.update(exactly)
        entry = described(package, old)
        entry.update(advisories=sorted(exactly), passed=sorted(passed), held=held)
        advisories.update(passed)
        updates.append(entry)
    fresh = [p for p in installed if p.installtime > boot]
    came_with = advisories_of(sack, fresh, hawkey.EQ)
    brought = [(p.name, {a.id for evr, a in came_with.get((p.name, p.arch), ()) if sack.evr_cmp(evr, p.evr) == 0})
               for p in fresh]
    suggested, problems = rebooting(base, set(advisories).union(*(ids for _, ids in brought)))
    return {
        'arch': base.conf.substitutions.get('basearch') or '', 'updates': updates,
        'advisories': [told(advisories[name]) for name in sorted(advisories)],
        'rebooting': sorted(suggested & set(advisories)),
        'restartFor': sorted({name for name, ids in brought if ids & suggested}), 'problems': problems,
    }


def kept_in_several_versions(sack, conf):
    installed = all_installed(sack)
    names = list(conf.installonlypkgs)
    return {p.name for p in list(installed.filter(provides=names)) + list(installed.filter(name=names))}


def several(base):
    base.fill_sack(load_available_repos=False)
    return {'names': sorted(kept_in_several_versions(base.sack, base.conf))}


def exact(sack, name, arch, version):
    return in_order(sack.query().available().filter(name=name, arch=arch, evr=version))


def rivals_of(sack, package):
    """The same version in other repositories, as another file."""
    alike = exact(sack, package.name, package.arch, package.evr)
    rivals = [p for p in alike if p.chksum != package.chksum]
    if any(p.reponame == package.reponame for p in rivals):
        raise Refused('%s offers different files as %s' % (package.reponame, package))
    return rivals


def without(base, rivals):
    """Leaves what other repositories offer under the same version out of account, as the command to install is told to:
    dnf would take any of them."""
    disabled = set(base.conf.disable_excludes) & ({'all'} | {rival.reponame for rival in rivals}) if rivals else ()
    if disabled:
        raise Refused('%s is offered in different builds by several repositories, and disable_excludes=%s of this machine '
                      'leaves the choice to dnf' % (rivals[0], ','.join(sorted(disabled))))
    if rivals:
        base.sack.add_excludes(base.sack.query().filter(pkg=rivals))


def words(name, arch, version):
    """What dnf calls this package, and no other."""
    return '%s-%s.%s' % (name, version if ':' in version else '0:' + version, arch)


def resolved(base, direction, packages):
    """Lets dnf make its transaction from the words that the command to install is told; what stands against it before."""
    sack = filled(base)
    there = {(p.name, p.arch, p.evr) for p in all_installed(sack)}
    everything = sack.query(flags=hawkey.IGNORE_REGULAR_EXCLUDES).available()
    missing, excluded, wanted, rivals = [], [], [], []
    for name, arch, version in packages:
        found = exact(sack, name, arch, version)
        if (name, arch, version) in there:
            continue
        if not found:
            is_excluded = everything.filter(name=name, arch=arch, evr=version)
            (excluded if is_excluded else missing).append('%s-%s.%s' % (name, version, arch))
        else:
            wanted.append(words(name, arch, version))
            rivals += rivals_of(sack, found[0])
    if missing or excluded:
        return {'missing': missing, 'excluded': excluded}
    while True:
        without(base, rivals)
        for spec in wanted:
            if direction == 'back':
                base.downgrade_to(spec, strict=base.conf.strict)
            else:
                base.upgrade(spec)
        base.resolve(allow_erasing=direction == 'removing')
        # What they need comes from the first repository, too.
        rivals = [rival for p in sets(base)[0] for rival in rivals_of(sack, exact(sack, p.name, p.arch, p.evr)[0])]
        if not rivals:
            return None
        base.reset(goal=True)


def sets(base):
    if not base.transaction:
        return [], set()
    return sorted(base.transaction.install_set), set(base.transaction.remove_set)


def plan(base, direction, packages):
    against = resolved(base, direction, packages)
    if against:
        return against
    sack = base.sack
    installed = list(all_installed(sack))
    several_versions = kept_in_several_versions(sack, base.conf)
    install, remove = sets(base)
    everything = sack.query(flags=hawkey.IGNORE_EXCLUDES).available()
    changes, replaced, oldest = [], set(), set()
    for package in install:
        if package.name in several_versions:
            # Beside the others; the oldest go as dnf's installonly_limit says, and never the running one.
            old = predecessor(installed, package)
            oldest.update(p for p in remove if (p.name, p.arch) == (package.name, package.arch))
        else:
            old = predecessor(list(remove), package)
            replaced.add(old)
        alike = everything.filter(name=package.name, arch=package.arch, evr=package.evr)
        changes.append(described(package, old, [p for p in alike if p.chksum != package.chksum]))
    return {
        'changes': changes, 'removals': sorted(p.name for p in remove - replaced - oldest),
        'oldest': sorted(p.name for p in oldest),
    }


def rehearse(base, direction, directory, packages):
    # Dnf returns before anything is stored permanently.
    base.conf.tsflags = list(base.conf.tsflags) + ['test']
    against = resolved(base, direction, packages)
    if against or not base.transaction:
        return against or {}
    for repo in base.repos.iter_enabled():
        repo.pkgdir = directory
    install, _ = sets(base)
    # The file that dnf would take is the one that its index speaks of.
    wrong = [str(package) for package in install if not package.verifyLocalPkg()]
    if wrong:
        raise Refused('not the files that their repositories state: %s' % ', '.join(wrong))
    # 1 says that the repository's key is not known to rpm yet: dnf gets it when it installs.
    checked = (base.package_signature_check(package) for package in install)
    refused = [message for result, message in checked if result not in (0, 1)]
    if refused:
        raise Refused('\n'.join(refused))
    try:
        base.do_transaction()
    except dnf.exceptions.Error as error:
        # What rpm has against these packages: whatever stands against dnf itself was there before.
        raise Refused(str(error))
    return {}


def repair(base, direction, _, packages):
    sack = filled(base)
    installed = list(all_installed(sack))
    several_versions = kept_in_several_versions(sack, base.conf)
    left, others, rivals = [], [], []
    for name, arch, version in packages:
        same = [p for p in installed if (p.name, p.arch) == (name, arch)]
        if name in several_versions or len(same) < 2 or not any(p.evr == version for p in same):
            continue
        left.append([name, arch, version])
        others += [p for p in same if p.evr != version]
        found = exact(sack, name, arch, version)
        rivals += rivals_of(sack, found[0]) if found else []
    if not left:
        return {'left': [], 'others': [], 'rivals': [], 'removed': [], 'more': []}
    without(base, rivals)
    if direction == 'back':
        # An earlier version that is there already cannot be installed again before the later one is gone.
        for package in others:
            base.remove(words(package.name, package.arch, package.evr))
        base.resolve(allow_erasing=True)
    else:
        # dnf takes the other versions away together with it.
        for package in left:
            base.reinstall(words(*package))
        base.resolve(allow_erasing=direction == 'removing')
    install, remove = sets(base)
    gone = {(p.name, p.arch, p.evr) for p in remove}
    stays = sorted(str(p) for p in others if (p.name, p.arch, p.evr) not in gone)
    if stays:
        raise Refused('dnf would leave what was interrupted: %s' % ', '.join(stays))
    expected = {tuple(package) for package in left} | {(p.name, p.arch, p.evr) for p in others}
    return {'left': left, 'others': [[p.name, p.arch, p.evr] for p in others],
            'rivals': sorted([rival.reponame, words(rival.name, rival.arch, rival.evr)] for rival in rivals),
            'removed': sorted(gone - expected),
            'more': sorted(str(p) for p in install if (p.name, p.arch, p.evr) not in expected)}


def files(base, packages):
    sack = filled(base)
    found = (exact(sack, *package) for package in packages)
    return {'files': [described(alike[0]) for alike in found if alike]}


def download(base, directory, packages):
    sack = filled(base)
    wanted = []
    for package in packages:
        found = exact(sack, *package)
        if not found:
            return {'missing': ['%s-%s.%s' % (package[0], package[2], package[1])]}
        wanted.append(found[0])
    for repo in base.repos.iter_enabled():
        repo.pkgdir = directory
    base.conf.destdir = directory
    # Nothing but the whole file is what the repository's index speaks of.
    base.conf.deltarpm = False
    base.download_packages(wanted)
    return {}


# Looked at: more than an hour ever has. An item is a package, and a release upgrade has thousands.
MAX_TRANSACTIONS, MAX_ITEMS = 100, 20000

COMING = {libdnf.transaction.TransactionItemAction_INSTALL, libdnf.transaction.TransactionItemAction_UPGRADE,
          libdnf.transaction.TransactionItemAction_DOWNGRADE}
GOING = {libdnf.transaction.TransactionItemAction_UPGRADED, libdnf.transaction.TransactionItemAction_DOWNGRADED,
         libdnf.transaction.TransactionItemAction_OBSOLETED, libdnf.transaction.TransactionItemAction_REMOVE}


def login(uid):
    # What the kernel says where nobody has logged in: audit_loginuid is unset.
    if uid is None or not 0 <= uid < 2 ** 32 - 1:
        return ''
    try:
        return '%s (%d)' % (pwd.getpwuid(uid).pw_name, uid)
    except KeyError:
        return '(%d)' % uid


def history(base):
    transactions, room = [], MAX_ITEMS
    # The latest first.
    for past in base.history.old()[:MAX_TRANSACTIONS]:
        items = [[item.name, item.arch, item.evr, item.action in COMING] for item in past.packages()
                 if item.is_package() and item.action in COMING | GOING]
        room -= len(items)
        if room < 0:
            break
        transactions.append({'begin': past.beg_timestamp or 0, 'end': past.end_timestamp or 0, 'items': items,
                             'user': login(past.loginuid), 'command': past.cmdline or ''})
    return {'transactions': transactions[::-1]}


def main(question, arguments):
    base = opened()
    if question == 'refresh':
        # A process of its own: a base that could not ask a repository does not look into its cache any more.
        return refresh(base)
    if question == 'scan':
        return scan(base, int(arguments[0]))
    if question == 'several':
        return several(base)
    if question == 'history':
        return history(base)
    asked, more = {'plan': (plan, 1), 'rehearse': (rehearse, 2), 'repair': (repair, 2), 'files': (files, 0),
                   'download': (download, 1)}[question]
    first, rest = arguments[:more], arguments[more:]
    return asked(base, *first, [tuple(rest[at:at + 3]) for at in range(0, len(rest), 3)])


try:
    result = main(sys.argv[1], sys.argv[2:])
except (dnf.exceptions.DepsolveError, dnf.exceptions.MarkingError, Refused) as error:
    result = {'failure': {'kind': 'packages', 'message': str(error)}}
except dnf.exceptions.DownloadError as error:
    result = {'failure': {'kind': 'download', 'message': str(error)}}
except (dnf.exceptions.Error, hawkey.Exception, RuntimeError, OSError) as error:
    result = {'failure': {'kind': 'other', 'message': str(error)}}
json.dump(result, answer)
answer.flush()
