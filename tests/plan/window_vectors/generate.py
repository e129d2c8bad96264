#!/usr/bin/env python3
"""Occurrences of maintenance windows over ten years, as other people's code computes them.

The local dates come from dateutil's rrule (RFC 5545), those of cron expressions from cronsim (which follows Debian's
cron, and on naive dates knows of no zone), the instants from the standard library's zoneinfo: with fold=0 a local time
in a gap is read with the offset before it, and the first of two that are the same (PEP 495), which is what RFC 5545
(3.3.5) asks for. Read so, local times one after the other need not be instants in that order, and two may be the same.

    pip install python-dateutil cronsim tzdata && PYTHONTZPATH= ./generate.py > vectors.txt

Each line: zone | schedule | first occurrence | minutes from each occurrence to the next, `MINUTESxTIMES` where they repeat.
"""

import importlib.metadata
from datetime import datetime, timedelta, timezone
from itertools import groupby, takewhile
from zoneinfo import ZoneInfo

from cronsim import CronSim
from dateutil import rrule

FROM = datetime(2020, 1, 1)
TO = datetime(2030, 1, 1)

ZONES = [
    "UTC",
    "Africa/Cairo",  # summer time again since 2023
    "Africa/Casablanca",  # pauses its summer time for Ramadan
    "America/Havana",  # the clocks change at midnight
    "America/Los_Angeles",
    "America/New_York",
    "America/Nuuk",  # another offset since 2023
    "America/Santiago",  # at midnight, in the south
    "America/St_Johns",
    "Asia/Beirut",  # at midnight
    "Asia/Kathmandu",
    "Asia/Kolkata",
    "Asia/Tehran",  # no summer time since 2022
    "Asia/Tokyo",
    "Australia/Adelaide",
    "Australia/Lord_Howe",  # by half an hour
    "Europe/Berlin",
    "Europe/Dublin",  # its winter time is the exception
    "Europe/London",
    "Pacific/Apia",
    "Pacific/Auckland",
    "Pacific/Chatham",
]

DAYS = {"MO": rrule.MO, "TU": rrule.TU, "WE": rrule.WE, "TH": rrule.TH, "FR": rrule.FR, "SA": rrule.SA, "SU": rrule.SU}

# Many of these fall into the gaps and overlaps of the zones above.
SCHEDULES = [
    "monthly 2 TU 4 22:00",
    "monthly -1 SU 0 02:30",
    "monthly 2 SU 0 02:15",
    "monthly -1 FR 2 00:30",
    "monthly 1 MO -10 00:15",
    "monthly 1 SU -1 23:59",
    "monthly 4 SU 27 01:30",
    "monthly -1 SA -27 01:45",
    "weekly SU 02:30",
    "weekly MO,WE,FR,SU 00:15",
    "daily 00:30",
    "daily 02:15",
    "cron 30 2 * * 1-5",
    "cron 0,30 0-3 * MAR,APR,SEP-NOV SUN",
    "cron */7 1-2 1-7,25-31 3,10 *",  # in a gap of half an hour between those after it
    "cron * 2 29-31 mar *",
    "cron 15 0 1,15 * FRI",  # either
    "cron 0 6 13 */5 5",
    "cron 30 1 31 4,6 TUE-THU/2",  # the 31st of neither
    "cron 0 12 29 2 *",
    "cron 45 23 31 * *",
    "cron 5 4 */9 * *",
    "cron 0 0 * 1-12/3 7",
    "cron 10 */12 * 2 0,5-7/2",
]


def local_times(schedule):
    """Local dates and times, in order, some on either side of the ten years."""
    if schedule.startswith("cron "):
        # It gives what comes after the instant that it is given.
        after = FROM - timedelta(days=100, minutes=1)
        return list(takewhile(lambda local: local < TO + timedelta(days=100), CronSim(schedule[5:], after)))
    kind, *words, at = schedule.split()
    hour, minute = (int(part) for part in at.split(":"))
    start, end = FROM - timedelta(days=100), TO + timedelta(days=100)
    offset = timedelta()
    if kind == "monthly":
        week, day, offset_days = words
        offset = timedelta(days=int(offset_days))
        rule = rrule.rrule(rrule.MONTHLY, dtstart=start, until=end, byweekday=DAYS[day](int(week)))
    elif kind == "weekly":
        rule = rrule.rrule(rrule.WEEKLY, dtstart=start, until=end, byweekday=[DAYS[day] for day in words[0].split(",")])
    else:
        rule = rrule.rrule(rrule.DAILY, dtstart=start, until=end)
    return [(date + offset).replace(hour=hour, minute=minute) for date in rule]


def main():
    print(f"# By generate.py: dateutil {importlib.metadata.version('python-dateutil')}, "
          f"cronsim {importlib.metadata.version('cronsim')}, tzdata {importlib.metadata.version('tzdata')}.")
    for zone in ZONES:
        for schedule in SCHEDULES:
            instants = sorted({local.replace(tzinfo=ZoneInfo(zone), fold=0).astimezone(timezone.utc)
                               for local in local_times(schedule) if FROM <= local < TO})
            minutes = [int((later - earlier).total_seconds()) // 60 for earlier, later in zip(instants, instants[1:])]
            runs = [(value, len(list(run))) for value, run in groupby(minutes)]
            text = " ".join(f"{value}x{times}" if times > 1 else f"{value}" for value, times in runs)
            print(f"{zone} | {schedule} | {instants[0].strftime('%Y-%m-%dT%H:%M:%SZ')} | {text}")


if __name__ == "__main__":
    main()
