# What the agent asks of dnf 5, through the Python modules of its library: the questions and answers of ask.py, which explains
# them. dnf 5 installs only files that lie in its own cache: to rehearse and to repair first puts those of the directory there.
# The answer is one JSON object. Nothing of the system changes but dnf's own cache.
import errno
import json
import os
import pwd
import resource
import shutil
import sys

# Plugins print where they like: the answer has standard output for itself.
answer = os.fdopen(os.dup(1), 'w')
os.dup2(2, 1)

from libdnf5 import transaction as history_of
from libdnf5.advisory import AdvisoryQuery
from libdnf5.base import Base, Goal, GoalProblem_NO_PROBLEM, Transaction
from libdnf5.exception import Error, NonLibdnf5Exception
from libdnf5.common import QueryCmp_EQ, QueryCmp_GT
from libdnf5.repo import PackageDownloader, RepoQuery
from libdnf5.rpm import Checksum, PackageQuery, PackageSet, RpmSignature, rpmvercmp

INSTALL, REINSTALL, UPGRADE, DOWNGRADE = (
    history_of.TransactionItemAction_INSTALL, history_of.TransactionItemAction_REINSTALL,
    history_of.TransactionItemAction_UPGRADE, history_of.TransactionItemAction_DOWNGRADE)
REMOVE, REPLACED = history_of.TransactionItemAction_REMOVE, history_of.TransactionItemAction_REPLACED

# What rpm knows no key for yet: dnf gets the repository's when it installs.
KEY_IS_UNKNOWN = {RpmSignature.CheckResult_FAILED_KEY_MISSING, RpmSignature.CheckResult_FAILED_NOT_TRUSTED}


class Refused(Exception):
    """What is asked for is not possible, by the packages that it is asked for."""


class NotFetched(Exception):
    """A file did not come."""


def opened(cacheonly):
    base = Base()
    base.load_config()
    conf = base.get_config()
    conf.timeout, conf.retries = 20, 2
    # What is in the cache counts, however old; when to ask the repositories is the agent's business.
    conf.cacheonly = cacheonly
    # What the command to install is told as well: exactly what is asked for, and nothing that is only suggested.
    conf.best, conf.install_weak_deps, conf.clean_requirements_on_remove = True, False, False
    base.setup()
    base.get_repo_sack().create_repos_from_system_configuration()
    return base


def enabled(base):
    query = RepoQuery(base)
    query.filter_enabled(True)
    return sorted(query, key=lambda repo: repo.get_id())


def refresh():
    base, problems = opened('none'), []
    # Each by itself: of several dnf only tells the first that does not answer.
    for wanted in [repo.get_id() for repo in enabled(base)]:
        base = opened('none')
        for repo in enabled(base):
            if repo.get_id() == wanted:
                repo.get_config().metadata_expire = 0
                repo.get_config().skip_if_unavailable = False
            else:
                repo.disable()
        try:
            base.get_repo_sack().load_repos()
        except Error as error:
            problems.append('%s: %s' % (wanted, words_of(error)))
    return {'problems': problems}


def words_of(error):
    return ' '.join(str(error).split())


def filled():
    """What dnf works with, and all packages, also what a configuration file excludes or what is locked to another version;
    modules are left as they are."""
    base = opened('metadata')
    for repo in enabled(base):
        repo.get_config().skip_if_unavailable = True
    conf, sack = base.get_config(), base.get_rpm_package_sack()
    disabled = list(conf.disable_excludes)
    # Not "*": with that no locks are read.
    conf.disable_excludes = ['main'] + [repo.get_id() for repo in enabled(base)]
    base.get_repo_sack().load_repos()
    locked = sack.get_versionlock_excludes()
    sack.clear_versionlock_excludes()
    everything = PackageQuery(base)
    conf.disable_excludes = disabled
    sack.load_config_excludes_includes()
    sack.set_versionlock_excludes(locked)
    return base, everything


def installed_of(everything):
    query = PackageQuery(everything)
    query.filter_installed()
    return query


def compared(a, b):
    """The order of two [EPOCH:]VERSION-RELEASE."""
    def parts(evr):
        epoch, _, rest = evr.rpartition(':')
        version, _, release = rest.partition('-')
        return int(epoch or 0), version, release
    (epoch, version, release), (other_epoch, other_version, other_release) = parts(a), parts(b)
    if epoch != other_epoch:
        return -1 if epoch < other_epoch else 1
    return rpmvercmp(version, other_version) or rpmvercmp(release, other_release)


class ByVersion:
    def __init__(self, package):
        self.evr = package.get_evr()

    def __lt__(self, other):
        return compared(self.evr, other.evr) < 0


def key_of(package):
    return package.get_name(), package.get_arch()


def exact_key(package):
    return package.get_name(), package.get_arch(), package.get_evr()


def spec(name, arch, version):
    """What dnf calls this package, and no other."""
    return '%s-%s.%s' % (name, version if ':' in version else '0:' + version, arch)


def digest(package):
    checksum = package.get_checksum()
    return checksum.get_checksum() if checksum.get_type() == Checksum.Type_SHA256 else ''


def described(package, old=None, rivals=()):
    return {
        'name': package.get_name(), 'arch': package.get_arch(), 'version': package.get_evr(),
        'source': package.get_sourcerpm(), 'repository': package.get_repo_id(), 'sha256': digest(package),
        'size': package.get_download_size(), 'unpacked': package.get_install_size(),
        'file': os.path.basename(package.get_location()), 'local': None,
        'old': old.get_evr() if old else None, 'rivals': sorted({rival.get_repo_id() for rival in rivals}),
    }


def latest(packages):
    query = PackageQuery(packages)
    query.filter_available()
    query.filter_priority()
    query.filter_upgrades()
    query.filter_latest_evr()
    return [package for package in query if package.get_arch() not in ('src', 'nosrc')]


def predecessor(installed, package):
    """The newest installed package that this one is a newer or an older version of."""
    same = [old for old in installed if old.get_name() == package.get_name()]
    alike = [old for old in same if old.get_arch() == package.get_arch()]
    return max(alike or (same if len(same) == 1 else []), key=ByVersion, default=None)


def in_order(packages):
    """By what counts where several repositories offer the same."""
    def order(package):
        repo = package.get_repo()
        return repo.get_priority(), repo.get_cost(), repo.get_id()
    return sorted(packages, key=order)


def once(packages):
    """What several repositories offer is offered once: by the one that `exact` takes."""
    found = {}
    for package in in_order(packages):
        found.setdefault(key_of(package), package)
    return list(found.values())


def advisories_of(base, packages, how):
    """What advisories say of each of these packages, by name and architecture."""
    found, wanted = {}, PackageSet(base)
    for package in packages:
        wanted.add(package)
    if packages:
        for entry in AdvisoryQuery(base).get_advisory_packages_sorted(wanted, how):
            found.setdefault(key_of(entry), []).append(entry)
    return found


def told(advisory):
    references = [(reference.get_type(), reference.get_id()) for reference in advisory.get_references()]
    return {'id': advisory.get_name(), 'kind': advisory.get_type(), 'severity': advisory.get_severity(),
            'title': advisory.get_title(), 'updated': advisory.get_buildtime(),
            'cves': sorted({name for kind, name in references if kind == 'cve' and name})}


def surviving(work):
    """What a process of its own makes, or None where it does not live to tell it: dnf's library aborts on advisories that lack
    what it takes for granted (a type, the id of a reference; seen with 5.4.6)."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with os.fdopen(writing, 'w') as pipe:
            json.dump(work(), pipe)
            pipe.flush()
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    return json.loads(text) if os.waitpid(child, 0)[1] == 0 else None


def advised(base, installed, pairs, boot):
    """What advisories say: of each of these updates, and of what was installed since the start."""
    own = advisories_of(base, [package for package, _, _ in pairs], QueryCmp_EQ)
    later = advisories_of(base, [old for _, old, _ in pairs], QueryCmp_GT)
    of_updates, advisories, rebooting = [], {}, set()
    for package, _, _ in pairs:
        key, version = key_of(package), package.get_evr()
        exactly = [entry for entry in own.get(key, ()) if compared(entry.get_evr(), version) == 0]
        # What the versions between the installed one and this one fix is fixed by this one, too.
        passed = exactly + [entry for entry in later.get(key, ()) if compared(entry.get_evr(), version) <= 0]
        of_updates.append([sorted({e.get_advisory().get_name() for e in group}) for group in (exactly, passed)])
        advisories.update((e.get_advisory().get_name(), e.get_advisory()) for e in passed)
        rebooting.update(e.get_advisory().get_name() for e in passed if e.get_reboot_suggested())
    fresh = [package for package in installed if package.get_install_time() > boot]
    came_with = advisories_of(base, fresh, QueryCmp_EQ)
    restart_for = {package.get_name() for package in fresh for entry in came_with.get(key_of(package), ())
                   if entry.get_reboot_suggested() and compared(entry.get_evr(), package.get_evr()) == 0}
    return of_updates, [told(advisories[name]) for name in sorted(advisories)], sorted(rebooting), sorted(restart_for)


def scan(boot):
    base, everything = filled()
    installed = list(installed_of(everything))
    offered = once(latest(PackageQuery(base)))
    known = {key_of(package) for package in offered}
    hidden = [package for package in once(latest(everything)) if key_of(package) not in known]
    pairs = [(p, predecessor(installed, p), held) for held, group in ((False, offered), (True, hidden)) for p in group]
    pairs = [(package, old, held) for package, old, held in pairs if old is not None]
    said, problems = surviving(lambda: advised(base, installed, pairs, boot)), []
    if said is None:
        problems = ["no advisory counts: dnf's library cannot read one of them, see `dnf advisory info`"]
    of_updates, advisories, rebooting, restart_for = said or ([([], [])] * len(pairs), [], [], [])
    updates = [dict(described(package, old), advisories=exactly, passed=passed, held=held)
               for (package, old, held), (exactly, passed) in zip(pairs, of_updates)]
    variables = base.get_vars()
    return {'arch': variables.get_value('basearch') if variables.contains('basearch') else '', 'updates': updates,
            'advisories': advisories, 'rebooting': rebooting, 'restartFor': restart_for, 'problems': problems,
            'unadvised': said is None}


def kept_in_several_versions(everything):
    query = installed_of(everything)
    query.filter_installonly()
    return {package.get_name() for package in query}


def several():
    base = opened('metadata')
    for repo in enabled(base):
        repo.disable()
    base.get_config().disable_excludes = ['*']
    base.get_repo_sack().load_repos()
    return {'names': sorted(kept_in_several_versions(PackageQuery(base)))}


def exact(packages, name, arch, version):
    query = PackageQuery(packages)
    query.filter_available()
    query.filter_name([name])
    query.filter_arch([arch])
    return in_order(package for package in query if package.get_evr() == version)


def rivals_of(base, package):
    """The same version in other repositories, as another file."""
    alike = exact(base, *exact_key(package))
    rivals = [p for p in alike if p.get_checksum().get_checksum() != package.get_checksum().get_checksum()]
    if any(rival.get_repo_id() == package.get_repo_id() for rival in rivals):
        raise Refused('%s offers different files as %s' % (package.get_repo_id(), package.get_nevra()))
    return rivals


def without(base, rivals):
    """Leaves what other repositories offer under the same version out of account, as the command to install is told to: dnf
    would take any of them."""
    disabled = set(base.get_config().disable_excludes) & ({'*', 'all'} | {rival.get_repo_id() for rival in rivals})
    if rivals and disabled:
        raise Refused('%s is offered in different builds by several repositories, and disable_excludes=%s of this machine '
                      'leaves the choice to dnf' % (rivals[0].get_nevra(), ','.join(sorted(disabled))))
    if rivals:
        excluded = PackageSet(base)
        for rival in rivals:
            excluded.add(rival)
        base.get_rpm_package_sack().add_user_excludes(excluded)


def solved(goal):
    result = goal.resolve()
    if result.get_problems() != GoalProblem_NO_PROBLEM:
        raise Refused('\n'.join(result.get_resolve_logs_as_strings()))
    return result


def coming(result):
    return [item for item in result.get_transaction_packages()
            if item.get_action() in (INSTALL, REINSTALL, UPGRADE, DOWNGRADE)]


def going(result):
    return [item.get_package() for item in result.get_transaction_packages() if item.get_action() in (REMOVE, REPLACED)]


def resolved(base, everything, direction, packages):
    """Lets dnf make its transaction from the words that the command to install is told, and what of other repositories it leaves
    out of account for that; or what stands against it before."""
    there = {exact_key(package) for package in installed_of(everything)}
    missing, excluded, wanted, rivals = [], [], [], []
    for name, arch, version in packages:
        if (name, arch, version) in there:
            continue
        found = exact(base, name, arch, version)
        if found:
            wanted.append(spec(name, arch, version))
            rivals += rivals_of(base, found[0])
        else:
            is_excluded = exact(everything, name, arch, version)
            (excluded if is_excluded else missing).append('%s-%s.%s' % (name, version, arch))
    if missing or excluded:
        return None, [], {'missing': missing, 'excluded': excluded}
    left_out = []
    while True:
        without(base, rivals)
        left_out += rivals
        goal = Goal(base)
        goal.set_allow_erasing(direction == 'removing')
        for word in wanted:
            if direction == 'back':
                goal.add_downgrade(word)
            else:
                goal.add_upgrade(word)
        result = solved(goal)
        # What they need comes from the first repository, too.
        firsts = [exact(base, *exact_key(item.get_package()))[0] for item in coming(result)]
        rivals = [rival for first in firsts for rival in rivals_of(base, first)]
        if not rivals:
            return result, left_out, None


def plan(direction, packages):
    base, everything = filled()
    result, rivals, against = resolved(base, everything, direction, packages)
    if against:
        return against
    installed = list(installed_of(everything))
    several_versions = kept_in_several_versions(everything)
    gone, changes, replaced, oldest = going(result), [], set(), set()
    for item in coming(result):
        package = item.get_package()
        if package.get_name() in several_versions:
            # Beside the others; the oldest go as dnf's installonly_limit says, and never the running one.
            old = predecessor(installed, package)
            oldest.update(exact_key(p) for p in gone if key_of(p) == key_of(package))
        else:
            old = predecessor(gone, package)
            if old:
                replaced.add(exact_key(old))
        changes.append(described(package, old, [p for p in rivals if exact_key(p) == exact_key(package)]))
    changes.sort(key=lambda change: (change['name'], change['arch']))
    return {
        'changes': changes,
        'removals': sorted(p.get_name() for p in gone if exact_key(p) not in replaced | oldest),
        'oldest': sorted(p.get_name() for p in gone if exact_key(p) in oldest),
    }


def put_into_cache(packages, directory):
    for package in packages:
        source, path = os.path.join(directory, os.path.basename(package.get_location())), package.get_package_path()
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if os.path.lexists(path):
            os.unlink(path)
        try:
            os.link(source, path)
        except OSError as error:
            # The cache is on another disk.
            if error.errno != errno.EXDEV:
                raise
            shutil.copyfile(source, path)
        # The file that dnf would take is the one that its index speaks of.
        if not package.is_available_locally():
            raise Refused('not the file that its repository states: %s' % package.get_nevra())


def rehearse(direction, directory, packages):
    base, everything = filled()
    result, _, against = resolved(base, everything, direction, packages)
    if against or result.empty():
        return against or {}
    files = [item.get_package() for item in coming(result)]
    put_into_cache(files, directory)
    checks = RpmSignature(base)
    results = [(package, checks.check_package_signature(package)) for package in files]
    good = KEY_IS_UNKNOWN | {RpmSignature.CheckResult_OK, RpmSignature.CheckResult_SKIPPED}
    refused = ['%s: %s' % (os.path.basename(p.get_location()), RpmSignature.check_result_to_string(found))
               for p, found in results if found not in good]
    if refused:
        raise Refused('\n'.join(refused))
    if any(found in KEY_IS_UNKNOWN for _, found in results):
        # rpm's test would need the key, and dnf would get it, for good, already now.
        return {}
    found = result.test()
    if found == Transaction.TransactionRunResult_SUCCESS:
        return {}
    said = '\n'.join(result.get_transaction_problems()) or Transaction.transaction_result_to_string(found)
    if found in (Transaction.TransactionRunResult_ERROR_CHECK, Transaction.TransactionRunResult_ERROR_RPM_RUN):
        raise Refused(said)
    raise RuntimeError(said)


def repair(direction, directory, packages):
    base, everything = filled()
    installed = list(installed_of(everything))
    several_versions = kept_in_several_versions(everything)
    left, others, rivals, files = [], [], [], []
    for name, arch, version in packages:
        same = [package for package in installed if key_of(package) == (name, arch)]
        if name in several_versions or len(same) < 2 or not any(p.get_evr() == version for p in same):
            continue
        left.append((name, arch, version))
        others += [package for package in same if package.get_evr() != version]
        found = exact(base, name, arch, version)
        files += found[:1]
        rivals += rivals_of(base, found[0]) if found else []
    if not left:
        return {'left': [], 'others': [], 'rivals': [], 'removed': [], 'more': []}
    without(base, rivals)
    put_into_cache(files, directory)
    goal = Goal(base)
    goal.set_allow_erasing(direction != 'forward')
    if direction == 'back':
        # An earlier version that is there already cannot be installed again before the later one is gone.
        for package in others:
            goal.add_remove(spec(*exact_key(package)))
    else:
        # dnf takes the other versions away together with it.
        for package in left:
            goal.add_reinstall(spec(*package))
    result = solved(goal)
    gone = {exact_key(package) for package in going(result)}
    stays = sorted(package.get_nevra() for package in others if exact_key(package) not in gone)
    if stays:
        raise Refused('dnf would leave what was interrupted: %s' % ', '.join(stays))
    expected = set(left) | {exact_key(package) for package in others}
    come = [item.get_package() for item in coming(result)]
    return {'left': left, 'others': [exact_key(package) for package in others],
            'rivals': sorted([rival.get_repo_id(), spec(*exact_key(rival))] for rival in rivals),
            'removed': sorted(gone - expected),
            'more': sorted(package.get_nevra() for package in come if exact_key(package) not in expected)}


def files(packages):
    base, _ = filled()
    found = (exact(base, *package) for package in packages)
    return {'files': [described(alike[0]) for alike in found if alike]}


def download(directory, packages):
    base, _ = filled()
    downloader = PackageDownloader(base)
    # Else dnf removes them after its next transaction.
    downloader.force_keep_packages(True)
    for package in packages:
        found = exact(base, *package)
        if not found:
            return {'missing': ['%s-%s.%s' % (package[0], package[2], package[1])]}
        downloader.add(found[0], directory)
    try:
        downloader.download()
    except Error as error:
        raise NotFetched(words_of(error))
    return {}


# Looked at: more than an hour ever has. An item is a package, and a release upgrade has thousands.
MAX_TRANSACTIONS, MAX_ITEMS = 100, 20000


def login(uid):
    # What the kernel says where nobody has logged in: audit_loginuid is unset.
    if not 0 <= uid < 2 ** 32 - 1:
        return ''
    try:
        return '%s (%d)' % (pwd.getpwuid(uid).pw_name, uid)
    except KeyError:
        return '(%d)' % uid


def version_of(item):
    bare = '%s-%s' % (item.get_version(), item.get_release())
    return bare if item.get_epoch() in ('', '0') else '%s:%s' % (item.get_epoch(), bare)


def history():
    base = opened('metadata')
    latest_first = sorted(base.get_transaction_history().list_all_transactions(), key=lambda past: -past.get_id())
    transactions, room = [], MAX_ITEMS
    for past in latest_first[:MAX_TRANSACTIONS]:
        items = [[item.get_name(), item.get_arch(), version_of(item), item.get_action() not in (REMOVE, REPLACED)]
                 for item in past.get_packages()
                 if item.get_action() in (INSTALL, UPGRADE, DOWNGRADE, REMOVE, REPLACED)]
        room -= len(items)
        if room < 0:
            break
        program, _, command = past.get_description().partition(' ')
        is_dnf = os.path.basename(program) in ('dnf', 'dnf5', 'yum')
        transactions.append({'begin': past.get_dt_start(), 'end': past.get_dt_end(), 'items': items,
                             'user': login(past.get_user_id()), 'command': command if is_dnf else past.get_description()})
    return {'transactions': transactions[::-1]}


def main(question, arguments):
    if question == 'refresh':
        return refresh()
    if question == 'scan':
        return scan(int(arguments[0]))
    if question == 'several':
        return several()
    if question == 'history':
        return history()
    asked, more = {'plan': (plan, 1), 'rehearse': (rehearse, 2), 'repair': (repair, 2), 'files': (files, 0),
                   'download': (download, 1)}[question]
    first, rest = arguments[:more], arguments[more:]
    return asked(*first, [tuple(rest[at:at + 3]) for at in range(0, len(rest), 3)])


try:
    found = main(sys.argv[1], sys.argv[2:])
except Refused as error:
    found = {'failure': {'kind': 'packages', 'message': str(error)}}
except NotFetched as error:
    found = {'failure': {'kind': 'download', 'message': str(error)}}
except (Error, NonLibdnf5Exception, OSError, RuntimeError) as error:
    found = {'failure': {'kind': 'other', 'message': str(error)}}
json.dump(found, answer)
answer.flush()
