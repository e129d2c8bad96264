# What the agent asks of dnf 4, through dnf's own documented API: dnf is a Python program, so where there is one there are its
# modules. Given to the interpreter that runs dnf, as `python -I -c SCRIPT QUESTION ARGUMENT...`:
#
#   refresh                                asks every repository what is new; says which do not answer
#   scan BOOT                              what is offered; BOOT is when the machine started, in seconds since 1970
#   plan forward|back PACKAGE...           what dnf would do to bring these packages to these versions
#   rehearse forward|back DIRECTORY PACKAGE...
#                                          checks signatures and rpm's own test of that, on the files that lie there
#   files PACKAGE...                       the files of these versions, as far as they are offered
#   download DIRECTORY PACKAGE...          brings them there
#   several                                names of packages of which several versions are kept
#
# A PACKAGE is three words: name, architecture, [EPOCH:]VERSION-RELEASE. The answer is one JSON object. Nothing of the system
# changes but dnf's own cache.
import json
import os
import re
import sys

# Plugins print where they like: the answer has standard output for itself.
answer = os.fdopen(os.dup(1), 'w')
os.dup2(2, 1)

import tempfile

import dnf
import dnf.exceptions
import dnf.repo
import hawkey
import libdnf.utils

KINDS = {hawkey.ADVISORY_SECURITY: 'security', hawkey.ADVISORY_BUGFIX: 'bugfix',
         hawkey.ADVISORY_ENHANCEMENT: 'enhancement', hawkey.ADVISORY_NEWPACKAGE: 'newpackage'}


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
    conf.best, conf.install_weak_deps = True, False
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


def described(package, installed=None, held=False):
    return {
        'name': package.name, 'arch': package.arch, 'version': package.evr, 'source': package.sourcerpm or '',
        'repository': package.reponame, 'sha256': hexadecimal(package), 'size': package.downloadsize,
        'unpacked': package.installsize, 'file': os.path.basename(package.location or ''),
        'local': package.localPkg() if is_local(package) else None,
        'old': installed.evr if installed else None,
        'advisories': [a.id for a in package.get_advisories(hawkey.EQ)], 'held': held,
    }


def is_local(package):
    address = package.remote_location(schemes=('file', 'http', 'https', 'ftp')) or ''
    return address.startswith('file:')


def latest(query):
    try:
        return list(query.filter(upgrades_by_priority=True).filter(latest_per_arch_by_priority=True))
    except (ValueError, hawkey.ValueException):
        # Before dnf 4.2.23 it does not look at priorities here.
        return list(query.upgrades().latest())


def predecessor(installed, package):
    """The newest installed package that this one is a newer or an older version of."""
    same = [old for old in installed if old.name == package.name]
    return max([old for old in same if old.arch == package.arch] or (same if len(same) == 1 else []), default=None)


def told(advisory):
    return {'id': advisory.id, 'kind': KINDS.get(advisory.type, 'unknown'), 'severity': advisory.severity or '',
            'title': advisory.title or '', 'updated': int(advisory.updated.timestamp()) if advisory.updated else 0,
            'cves': sorted({r.id for r in advisory.references if r.type == hawkey.REFERENCE_CVE and r.id})}


def rebooting(base, wanted):
    """Which of these advisories say that a restart is suggested. hawkey does not tell; their file does."""
    found = set()
    for repo in base.repos.iter_enabled() if wanted else ():
        path = repo.get_metadata_path('updateinfo')
        if not path or not os.path.exists(path):
            continue
        with tempfile.TemporaryDirectory(prefix='patchwarden-') as place:
            plain = path
            if not path.endswith('.xml'):
                plain = os.path.join(place, 'updateinfo.xml')
                libdnf.utils.decompress(path, plain, 0o600)
            with open(plain, 'rb') as file:
                text = file.read()
        current = None
        for match in re.finditer(rb'<id>([^<]{1,300})</id>|<reboot_suggested\s*(?:/>|>\s*(?:True|true|1)\s*<)', text):
            if match.group(1):
                current = match.group(1).decode('utf-8', 'replace').strip()
            elif current in wanted:
                found.add(current)
    return found


def once(packages):
    """What several repositories offer is offered once: by the one that `exact` takes."""
    ordered = sorted(packages, key=lambda package: (package.repo.priority, package.repo.cost, package.reponame))
    found = {}
    for package in ordered:
        found.setdefault((package.name, package.arch), package)
    return list(found.values())


def scan(base, boot):
    sack = filled(base)
    installed = list(sack.query(flags=hawkey.IGNORE_EXCLUDES).installed())
    offered = once(latest(sack.query()))
    known = {(p.name, p.arch) for p in offered}
    # Excluded by dnf.conf, by a repository's file or by a plugin such as versionlock; modules are left as they are.
    hidden = [p for p in once(latest(sack.query(flags=hawkey.IGNORE_REGULAR_EXCLUDES))) if (p.name, p.arch) not in known]
    updates, advisories = [], {}
    for package, held in [(p, False) for p in offered] + [(p, True) for p in hidden]:
        old = predecessor(installed, package)
        if old is None:
            continue
        entry = described(package, old, held)
        # What the versions between the installed one and this one fix is fixed by this one, too.
        passed = {a.id: a for a in package.get_advisories(hawkey.EQ)}
        passed.update((a.id, a) for a in old.get_advisories(hawkey.GT)
                      if any(o.name == package.name and o.arch == package.arch and
                             sack.evr_cmp(o.evr, package.evr) <= 0 for o in a.packages))
        entry['passed'] = sorted(passed)
        advisories.update(passed)
        updates.append(entry)
    fresh = [(p.name, {a.id for a in p.get_advisories(hawkey.EQ)}) for p in installed if p.installtime > boot]
    suggesting = rebooting(base, set(advisories).union(*(ids for _, ids in fresh)))
    return {
        'arch': base.conf.substitutions.get('basearch') or '', 'updates': updates,
        'advisories': [told(advisories[name]) for name in sorted(advisories)],
        'rebooting': sorted(suggesting & set(advisories)),
        'restartFor': sorted({name for name, ids in fresh if ids & suggesting}),
    }


def kept_in_several_versions(sack, conf):
    installed = sack.query(flags=hawkey.IGNORE_EXCLUDES).installed()
    names = list(conf.installonlypkgs)
    return {p.name for p in list(installed.filter(provides=names)) + list(installed.filter(name=names))}


def several(base):
    base.fill_sack(load_available_repos=False)
    return {'names': sorted(kept_in_several_versions(base.sack, base.conf))}


def exact(sack, name, arch, version):
    found = sack.query().available().filter(name=name, arch=arch, evr=version)
    return sorted(found, key=lambda package: (package.repo.priority, package.repo.cost, package.reponame))


def resolved(base, direction, packages):
    """Lets dnf make its transaction; what stands against it before that."""
    sack = filled(base)
    installed = list(sack.query(flags=hawkey.IGNORE_EXCLUDES).installed())
    everything = sack.query(flags=hawkey.IGNORE_REGULAR_EXCLUDES).available()
    missing, excluded = [], []
    for name, arch, version in packages:
        found = exact(sack, name, arch, version)
        if any((p.name, p.arch, p.evr) == (name, arch, version) for p in installed):
            continue
        if not found:
            is_excluded = everything.filter(name=name, arch=arch, evr=version)
            (excluded if is_excluded else missing).append('%s-%s.%s' % (name, version, arch))
        elif direction == 'forward':
            base.package_upgrade(found[0])
        else:
            base.package_downgrade(found[0])
    if missing or excluded:
        return {'missing': missing, 'excluded': excluded}
    base.resolve()
    return None


def plan(base, direction, packages):
    against = resolved(base, direction, packages)
    if against:
        return against
    sack = base.sack
    installed = list(sack.query(flags=hawkey.IGNORE_EXCLUDES).installed())
    several_versions = kept_in_several_versions(sack, base.conf)
    install = sorted(base.transaction.install_set) if base.transaction else []
    remove = set(base.transaction.remove_set) if base.transaction else set()
    changes, replaced = [], set()
    for package in install:
        if package.name in several_versions:
            # Beside the others; the oldest go as dnf's installonly_limit says, and never the running one.
            old = predecessor(installed, package)
            replaced.update(p for p in remove if (p.name, p.arch) == (package.name, package.arch))
        else:
            old = predecessor(list(remove), package)
            replaced.add(old)
        changes.append(described(package, old))
    return {'changes': changes, 'removals': sorted(p.name for p in remove - replaced)}


def rehearse(base, direction, directory, packages):
    # Dnf returns before anything is stored permanently.
    base.conf.tsflags = list(base.conf.tsflags) + ['test']
    against = resolved(base, direction, packages)
    if against or not base.transaction:
        return against or {}
    for repo in base.repos.iter_enabled():
        repo.pkgdir = directory
    # 1 says that the repository's key is not known to rpm yet: dnf gets it when it installs.
    checked = (base.package_signature_check(package) for package in sorted(base.transaction.install_set))
    refused = [message for result, message in checked if result not in (0, 1)]
    if refused:
        raise dnf.exceptions.Error('\n'.join(refused))
    base.do_transaction()
    return {}


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


def main(question, arguments):
    base = opened()
    if question == 'refresh':
        # A process of its own: a base that could not ask a repository does not look into its cache any more.
        return refresh(base)
    if question == 'scan':
        return scan(base, int(arguments[0]))
    if question == 'several':
        return several(base)
    asked, more = {'plan': (plan, 1), 'rehearse': (rehearse, 2), 'files': (files, 0), 'download': (download, 1)}[question]
    first, rest = arguments[:more], arguments[more:]
    return asked(base, *first, [tuple(rest[at:at + 3]) for at in range(0, len(rest), 3)])


try:
    result = main(sys.argv[1], sys.argv[2:])
except dnf.exceptions.DepsolveError as error:
    result = {'failure': {'kind': 'dependencies', 'message': str(error)}}
except dnf.exceptions.DownloadError as error:
    result = {'failure': {'kind': 'download', 'message': str(error)}}
except (dnf.exceptions.Error, hawkey.Exception, RuntimeError, OSError) as error:
    result = {'failure': {'kind': 'other', 'message': str(error)}}
json.dump(result, answer)
answer.flush()
