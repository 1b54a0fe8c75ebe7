"""What run.sh needs done with its figures.

report.py hints FILE.cbt                             changed blocks as an rbd diff, which benji takes as hints
report.py report RESULTS.tsv MANIFEST.json OUT.json  medians: a table on stdout, everything in OUT.json
"""
import base64
import collections
import json
import os
import platform
import statistics
import sys
import time

STEPS = ["full", "day2", "day3", "restore", "size"]


def hints(path):
    with open(path, "rb") as f:
        bitmap = base64.b64decode(f.read())
    ranges = []
    for block in range(len(bitmap) * 8):
        if bitmap[block >> 3] & (0x80 >> (block & 7)):
            if ranges and ranges[-1]["offset"] + ranges[-1]["length"] == block << 16:
                ranges[-1]["length"] += 1 << 16
            else:
                ranges.append({"offset": block << 16, "length": 1 << 16, "exists": "true"})
    json.dump(ranges, sys.stdout)


def cpu_model():
    with open("/proc/cpuinfo") as f:
        names = [line.split(":", 1)[1].strip() for line in f if line.startswith("model name")]
    return names[0] if names else platform.machine()


def report(results, manifest, out):
    versions, runs = {}, collections.defaultdict(lambda: collections.defaultdict(list))
    with open(results) as f:
        for line in f:
            _, peer, step, *values = line.rstrip("\n").split("\t")
            if step == "version":
                versions[peer] = values[0] if values else "?"
            else:
                wall, user, system, rss_kib = map(float, values)
                runs[peer][step].append({"value": wall, "cpu_s": user + system, "rss_mib": rss_kib / 1024})
    table = {
        peer: {
            step: {
                "median": statistics.median(r["value"] for r in all_runs),
                "runs": [r["value"] for r in all_runs],
                "cpu_s": statistics.median(r["cpu_s"] for r in all_runs),
                "peak_rss_mib": round(max(r["rss_mib"] for r in all_runs), 1),
            }
            for step, all_runs in steps.items()
        }
        for peer, steps in runs.items()
    }
    with open(manifest) as f:
        corpus = json.load(f)
    with open(out, "w") as f:
        json.dump(
            {
                "date": time.strftime("%Y-%m-%d", time.gmtime()),
                "machine": {"cpu": cpu_model(), "cores": os.cpu_count(), "kernel": platform.release()},
                "corpus": {"kind": corpus["corpus"], "synthetic": corpus.get("synthetic", False), "built": corpus["built"]},
                "units": {"full": "s", "day2": "s", "day3": "s", "restore": "s", "size": "bytes"},
                "versions": versions,
                "peers": table,
            },
            f,
            indent=1,
        )

    # In brackets: how many times Undercroft's figure of the same kind (whole reads against undercroft, changed
    # blocks against undercroft_cbt).
    def cell(peer, step):
        if step not in table[peer]:
            return "-"
        value = table[peer][step]["median"]
        text = "%.0f MiB" % (value / 2**20) if step == "size" else "%.2f s" % value
        own = table.get("undercroft_cbt" if peer == "benji" else "undercroft", {}).get(step)
        if own and own["median"] and peer not in ("undercroft", "undercroft_cbt"):
            text += " (%.2fx)" % (value / own["median"])
        return text

    print("| peer | " + " | ".join(STEPS) + " | full: CPU s | full: peak MiB |")
    print("| --- |" + " --- |" * (len(STEPS) + 2))
    for peer in table:
        full = table[peer].get("full")
        extra = ["%.1f" % full["cpu_s"], "%.0f" % full["peak_rss_mib"]] if full else ["-", "-"]
        print("| %s | %s |" % (peer, " | ".join([cell(peer, step) for step in STEPS] + extra)))
    for peer, version in versions.items():
        print("%s: %s" % (peer, version))


if __name__ == "__main__":
    {"hints": hints, "report": report}[sys.argv[1]](*sys.argv[2:])
