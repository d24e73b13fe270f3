"""tools/checkpoint fetch against a server on 127.0.0.1: resuming, refusals, digests, the token, the fixed commit."""
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

SOURCE = pathlib.Path(os.environ.get("SOURCE") or pathlib.Path(__file__).resolve().parents[2])
sys.path[:0] = [str(SOURCE / "tests/support"), str(SOURCE / "tests/checkpoint")]
import tap  # noqa: E402
from fake_hub import FakeHub  # noqa: E402

try:
    import huggingface_hub  # noqa: F401
except ImportError as e:
    print(f"1..0 # SKIP needs the packages of tools/requirements-checkpoint.txt: {e}")
    sys.exit(0)

REPOSITORY = "openbmb/MiniCPM-o-2_6"
COMMIT, OLDER = "9da79acd" + "1" * 32, "c248f011" + "2" * 32
SHARD = "model-00001-of-00001.safetensors"
BLOCK = 10 << 20  # huggingface_hub writes whole blocks of this size: what it keeps of a cut download
FILES = {
    "config.json": b'{"model_type": "minicpmo"}\n', "tokenizer.json": b"{}\n", "vocab.json": b"{}\n",
    "model.safetensors.index.json": b"{}\n", SHARD: os.urandom(BLOCK * 5 // 2), "assets/Vocos.pt": os.urandom(200_000),
    "assets/chattts_tokenizer/tokenizer.json": b"{}\n",
    "assets/Skiing.mp4": b"not wanted", "modeling_minicpmo.py": b"raise SystemExit('code is not wanted')",
}
WANTED = set(FILES) - {"assets/Skiing.mp4", "modeling_minicpmo.py"}


class Fetch(unittest.TestCase):
    def setUp(self):
        keep = tempfile.TemporaryDirectory()
        self.addCleanup(keep.cleanup)
        self.base = pathlib.Path(keep.name)
        self.folder = self.base / "model"
        self.hub = FakeHub(REPOSITORY, [COMMIT, OLDER], dict(FILES))
        self.addCleanup(self.hub.close)

    def fetch(self, *options: str, **environment: str) -> subprocess.CompletedProcess:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and not k.lower().endswith("_proxy")}
        return subprocess.run([sys.executable, SOURCE / "tools/checkpoint.d", "fetch", *options, self.folder],
                              capture_output=True, text=True, timeout=120, env=clean | {
                                  "HF_ENDPOINT": self.hub.url, "HF_HOME": str(self.base / "home"), "NO_PROXY": "127.0.0.1",
                                  "HF_HUB_DISABLE_TELEMETRY": "1"} | environment)

    def assert_fetched(self, run: subprocess.CompletedProcess) -> None:
        self.assertEqual(run.returncode, 0, run.stderr)
        have = {p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*")
                if p.is_file()}
        self.assertEqual(have, WANTED)
        for name in WANTED:
            self.assertEqual((self.folder / name).read_bytes(), FILES[name], name)

    def assert_failed(self, run: subprocess.CompletedProcess, *texts: str) -> None:
        self.assertEqual(run.returncode, 1, run.stdout + run.stderr)
        self.assertNotIn("Traceback", run.stderr)
        for text in texts:
            self.assertIn(text, run.stderr)
        self.assertFalse((self.folder / SHARD).exists())

    def test_fetches_weights_and_no_code(self):
        run = self.fetch()
        self.assert_fetched(run)
        self.assertIn(COMMIT, run.stderr)
        self.assertIn(f"tools/checkpoint convert {self.folder}", run.stdout)
        self.assertEqual(self.hub.downloads("modeling_minicpmo.py"), [])

    def test_nothing_is_fetched_twice(self):
        self.fetch()
        before = len(self.hub.requests)
        self.assert_fetched(self.fetch())
        self.assertEqual([r for r in self.hub.requests[before:] if "/resolve/" in r[1]], [])

    def test_goes_on_after_a_cut_connection(self):
        self.hub.cut = {SHARD}
        self.assert_fetched(self.fetch())
        self.assertEqual(self.hub.downloads(SHARD), [None, f"bytes={BLOCK}-"])

    def test_goes_on_in_another_run(self):
        self.hub.cut, self.hub.cut_and_refuse = {SHARD}, {SHARD}
        self.assert_failed(self.fetch(), "403", "goes on from there")
        self.hub.cut_and_refuse = set()
        before = len(self.hub.downloads(SHARD))
        self.assert_fetched(self.fetch())
        self.assertEqual(self.hub.downloads(SHARD)[before:], [f"bytes={BLOCK}-"])

    def test_changed_file_is_fetched_again(self):
        self.fetch()
        damaged = bytearray(FILES[SHARD])
        damaged[1000] ^= 1
        (self.folder / SHARD).write_bytes(damaged)
        self.assert_fetched(self.fetch())

    def test_other_bytes_than_listed(self):
        self.hub.swapped[SHARD] = bytes(len(FILES[SHARD]))
        self.assert_failed(self.fetch(), SHARD, "does not have the listed sha256")

    def test_other_size_than_listed(self):
        self.hub.swapped[SHARD] = FILES[SHARD][:1000]
        self.assert_failed(self.fetch(), f"should be of size {len(FILES[SHARD])} but has size 1000")

    def test_small_file_with_other_bytes(self):
        self.hub.swapped["config.json"] = FILES["config.json"].replace(b"minicpmo", b"minicpmx")
        self.assert_failed(self.fetch(), "config.json does not have the listed git hash")

    def test_file_that_is_listed_and_not_there(self):
        real = self.hub.listing()
        real["siblings"].append(dict(rfilename="merges.txt", size=3, blobId="0" * 40))
        self.hub.listing = lambda: real
        self.assert_failed(self.fetch(), "404", "is the name or the commit right?")

    def test_name_that_leads_out(self):
        self.hub.files["assets/Vocos.x/../../../../evil.pt"] = b"x"
        self.assert_failed(self.fetch(), "which leads out of the directory")
        self.assertEqual(list(self.base.rglob("evil*")), [])

    def test_short_commit_is_looked_up(self):
        self.assert_fetched(self.fetch("--revision", COMMIT[:10]))
        self.assertEqual({p.split("/")[4] for _, p, _ in self.hub.requests if "/resolve/" in p}, {COMMIT})

    def test_unknown_commit(self):
        self.assert_failed(self.fetch("--revision", "abcdef12"), "has no commit that begins with abcdef12", "--revision")
        self.assert_failed(self.fetch("--revision", "f" * 40), "404", "is the name or the commit right?")

    def test_branches_are_refused(self):
        self.assert_failed(self.fetch("--revision", "main"), "not a commit")
        self.assertEqual(self.hub.requests, [])

    def test_token(self):
        self.hub.token = "hf_secret"
        self.assert_failed(self.fetch(), "401", "is HF_TOKEN right?")
        run = self.fetch(HF_TOKEN="hf_secret")
        self.assert_fetched(run)
        self.assertNotIn("hf_secret", run.stdout + run.stderr)

    def test_token_is_not_given_to_the_server_of_the_files(self):
        files = FakeHub(REPOSITORY, [COMMIT], dict(FILES), host="127.0.0.2")  # another host, without a name to look up
        self.addCleanup(files.close)
        files.cut = {SHARD}
        self.hub.token, self.hub.elsewhere = "hf_secret", files.url
        self.assert_fetched(self.fetch(HF_TOKEN="hf_secret", NO_PROXY="127.0.0.1,127.0.0.2"))
        self.assertEqual(files.downloads(SHARD), [None, f"bytes={BLOCK}-"])
        self.assertEqual(set(files.tokens), {None})

    def test_offline(self):
        self.assert_failed(self.fetch(HF_HUB_OFFLINE="1"), "HF_HUB_OFFLINE is set")
        self.assertEqual(self.hub.requests, [])

    def test_no_server(self):
        self.assert_failed(self.fetch(HF_ENDPOINT="http://127.0.0.1:9"), "goes on from there")


if __name__ == "__main__":
    tap.main()
