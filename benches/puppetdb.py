#!/usr/bin/env python3
"""Load on PuppetDB, which keeps and searches inventories as Patchwarden's store does: what is measured is printed.

    puppetdb.py --inventory FILE --process PID --seconds NUMBER [--url http://127.0.0.1:8080]

FILE has the machines that the simulated agents of examples/bench-gateway were, a line of JSON each: their names and packages. Each machine's
facts are sent by PuppetDB's own protocol (replace_facts, version 5, with package_inventory:
https://www.puppet.com/docs/puppetdb/7/api/wire_format/facts_format_v5.html), and the answer is waited for until PuppetDB has kept them
(secondsToWaitForCompletion: https://www.puppet.com/docs/puppetdb/7/api/command/v1/commands.html). hack/bench-gateway --compare starts it.
"""

import argparse
import concurrent.futures
import datetime
import http.client
import itertools
import json
import os
import threading
import time
import urllib.parse

# As in examples/bench-gateway.
CROWD = 64
FEW = 2
SEARCHES = 200

LOCAL = threading.local()


def connection(url):
    """One for each thread, kept."""
    if not hasattr(LOCAL, "connection"):
        LOCAL.connection = http.client.HTTPConnection(urllib.parse.urlsplit(url).netloc, timeout=120)
    return LOCAL.connection


def request(url, method, path, body=None):
    made = connection(url)
    made.request(method, path, body=body, headers={"Content-Type": "application/json", "Accept": "application/json"})
    answer = made.getresponse()
    text = answer.read()
    if answer.status != 200:
        raise SystemExit(f"{method} {path}: {answer.status} {text[:300]!r}")
    return json.loads(text)


class Machine:
    """A machine, and what it would tell."""

    def __init__(self, line):
        told = json.loads(line)
        self.name = told["name"]
        self.packages = told["packages"]
        self.turns = 0

    def change(self):
        """Another package than before has a later version."""
        package = self.packages[self.turns % len(self.packages)]
        package[1] += "+1"
        self.turns += 1

    def send(self, url):
        now = datetime.datetime.now(datetime.timezone.utc).isoformat()
        facts = {
            "certname": self.name,
            "environment": "production",
            "producer": "bench",
            "producer_timestamp": now,
            "values": {
                "os": {"family": "Debian", "name": "Debian", "release": {"full": "12.11", "major": "12"}, "architecture": "amd64"},
                "kernelrelease": "6.1.0-37-amd64",
                "fqdn": self.name,
            },
            "package_inventory": [[name, version, "apt"] for name, version in self.packages],
        }
        query = urllib.parse.urlencode({
            "certname": self.name,
            "command": "replace_facts",
            "version": 5,
            "producer-timestamp": now,
            "secondsToWaitForCompletion": 100,
        })
        began = time.monotonic()
        answer = request(url, "POST", f"/pdb/cmd/v1?{query}", json.dumps(facts))
        if answer.get("processed") is not True:
            raise SystemExit(f"PuppetDB has not kept the facts of {self.name}: {answer}")
        return time.monotonic() - began


def cpu(process):
    """Seconds on processors."""
    with open(f"/proc/{process}/stat", encoding="utf-8") as stat:
        fields = stat.read().rsplit(") ", 1)[1].split(" ")
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(process):
    """MiB."""
    with open(f"/proc/{process}/status", encoding="utf-8") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmRSS:"))


def percentiles(times):
    times = sorted(times)
    at = lambda percent: times[min(len(times) - 1, len(times) * percent // 100)] * 1000
    return f"{at(50):.2f} ms (p50), {at(99):.2f} ms (p99)"


def load(words, machines, arguments, at_once, change, seconds=None):
    """Each machine has a turn after all others, until the time is over; or one turn, where there is no time."""
    began, before = time.monotonic(), cpu(arguments.process)

    def worker(first):
        mine, times = machines[first::at_once], []
        for machine in itertools.cycle(mine) if seconds else mine:
            if seconds and time.monotonic() - began >= seconds:
                break
            if change:
                machine.change()
            times.append(machine.send(arguments.url))
        return times

    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        times = [one for some in pool.map(worker, range(at_once)) for one in some]
    elapsed, used = time.monotonic() - began, cpu(arguments.process) - before
    print(f"- {words} ({at_once} at once): {len(times)} in {elapsed:.1f} s, {len(times) / elapsed:.0f}/s; "
          f"{len(times) / used:.0f}/s for each core of PuppetDB ({used:.1f} s of processor time, without PostgreSQL's); "
          f"kept, and answered, after {percentiles(times)}", flush=True)


def search(machines, arguments):
    """Which machines have a package, in which versions: the first hundred."""
    names = [name for name, _ in machines[0].packages]
    times, found, before = [], 0, cpu(arguments.process)
    for number in range(SEARCHES):
        query = json.dumps(["=", "package_name", names[number % len(names)]])
        path = "/pdb/query/v4/package-inventory?" + urllib.parse.urlencode({
            "query": query, "limit": 100, "order_by": '[{"field": "certname"}]'})
        began = time.monotonic()
        found += len(request(arguments.url, "GET", path))
        times.append(time.monotonic() - began)
    if found == 0:
        raise SystemExit("PuppetDB finds nothing")
    used = cpu(arguments.process) - before
    print(f"- searches for a package, one after the other, the first 100 machines that have it: {SEARCHES}, answered after "
          f"{percentiles(times)}; {used / SEARCHES * 1000:.2f} ms of processor time for each", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inventory", required=True)
    parser.add_argument("--process", required=True, type=int)
    parser.add_argument("--seconds", required=True, type=int)
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    arguments = parser.parse_args()
    with open(arguments.inventory, encoding="utf-8") as lines:
        machines = [Machine(line) for line in lines]
    print(f"PuppetDB, {len(machines)} machines")
    load("first facts, all software with them", machines, arguments, CROWD, change=False)
    load("unchanged facts, as many as possible", machines, arguments, CROWD, change=False, seconds=arguments.seconds)
    load("unchanged facts, one answer", machines, arguments, FEW, change=False, seconds=arguments.seconds)
    load("changed facts, as many as possible", machines, arguments, CROWD, change=True, seconds=arguments.seconds)
    load("changed facts, one answer", machines, arguments, FEW, change=True, seconds=arguments.seconds)
    search(machines, arguments)
    print(f"- resident memory: {resident(arguments.process):.0f} MiB")


if __name__ == "__main__":
    main()
