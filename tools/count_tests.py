"""count_tests.py MESON-LOGS: the closing line of tools/test.

Counts test cases, not programs: each case of a GoogleTest program, each line of a TAP program. A program that ends
badly without a failing case (a crash, a leak, a time-out) counts as one failure, by name.
"""
import json
import os
import sys
import xml.etree.ElementTree as ElementTree


def cases(path: str) -> dict[str, list[int]]:
    """Program name -> [passed, failed, skipped] of the junit file."""
    counts: dict[str, list[int]] = {}
    for suite in ElementTree.parse(path).getroot().iter("testsuite"):
        for case in suite.iter("testcase"):
            # meson names a GoogleTest suite "PROJECT.PROGRAM.SUITE" and puts other programs' names into the case.
            count = counts.setdefault(suite.get("name", ""), [0, 0, 0])
            if case.find("failure") is not None or case.find("error") is not None:
                count[1] += 1
                print(f"FAILED {suite.get('name')} {case.get('name')}")
            elif case.find("skipped") is not None or case.get("status") == "notrun" or case.get("result") == "skipped":
                count[2] += 1
                print(f"skipped {suite.get('name')} {case.get('name')}")
            else:
                count[0] += 1
    return counts


def main(logs: str) -> int:
    counts = cases(os.path.join(logs, "testlog.junit.xml"))
    passed, failed, skipped = (sum(c[i] for c in counts.values()) for i in range(3))
    with open(os.path.join(logs, "testlog.json"), encoding="utf-8") as file:
        programs = [json.loads(line) for line in file if line.strip()]
    for program in programs:
        if program["result"] in ("OK", "SKIP", "EXPECTEDFAIL"):
            continue
        name = program["name"].split("/")[-1].strip().split(" ")[-1]
        if not any(c[1] and name in suite for suite, c in counts.items()):
            print(f"FAILED {program['name']}: {program['result']}")
            failed += 1
    if not programs:
        print("no test ran")
        failed += 1
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
