#!/usr/bin/env python3
"""Occurrences of maintenance windows over ten years, as other people's code computes them.

The local dates come from dateutil's rrule (RFC 5545), the instants from the standard library's zoneinfo: with fold=0 a
local time in a gap is read with the offset before it, and the first of two that are the same (PEP 495), which is what
RFC 5545 (3.3.5) asks for.

    pip install python-dateutil tzdata && PYTHONTZPATH= ./generate.py > vectors.txt

Each line: zone | schedule | first occurrence | minutes from each occurrence to the next, `MINUTESxTIMES` where they repeat.
"""

import importlib.metadata
from datetime import datetime, timedelta, timezone
from itertools import groupby
from zoneinfo import ZoneInfo

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
]


def local_times(schedule):
    """Local dates and times, in order, some on either side of the ten years."""
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
          f"tzdata {importlib.metadata.version('tzdata')}.")
    for zone in ZONES:
        for schedule in SCHEDULES:
            instants = [local.replace(tzinfo=ZoneInfo(zone), fold=0).astimezone(timezone.utc)
                        for local in local_times(schedule) if FROM <= local < TO]
            minutes = [int((later - earlier).total_seconds()) // 60 for earlier, later in zip(instants, instants[1:])]
            runs = [(value, len(list(run))) for value, run in groupby(minutes)]
            text = " ".join(f"{value}x{times}" if times > 1 else f"{value}" for value, times in runs)
            print(f"{zone} | {schedule} | {instants[0].strftime('%Y-%m-%dT%H:%M:%SZ')} | {text}")


if __name__ == "__main__":
    main()
