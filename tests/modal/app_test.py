"""modal/app.py without an account: what it tells Modal's package, which checks it, is what is documented. SOURCE comes from the environment."""
import importlib.util
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest
from unittest import mock

SOURCE = pathlib.Path(os.environ["SOURCE"])
sys.path[:0] = [str(SOURCE / "tests/support"), str(SOURCE / "tests/container")]
import dockerfile  # noqa: E402
import modal  # noqa: E402
import tap  # noqa: E402


class Loaded:
    """The module, and the arguments of what it made."""

    def __init__(self, **environment: str):
        self.functions, self.servers, self.dockerfile, self.volumes, self.secrets = {}, {}, None, [], []
        real_function, real_server = modal.App.function, modal.App.server
        real_image, real_volume, real_secret = modal.Image.from_dockerfile, modal.Volume.from_name, modal.Secret.from_name

        def function(app, **options):
            return lambda f: self.functions.setdefault(f.__name__, options) and real_function(app, **options)(f)

        def server(app, **options):
            return lambda c: self.servers.setdefault(c.__name__, options) and real_server(app, **options)(c)

        def image(path, **options):
            self.dockerfile = (pathlib.Path(path), options)
            return real_image(path, **options)

        def volume(name, **options):
            self.volumes.append((name, options))
            return real_volume(name, **options)

        def secret(name, **options):
            self.secrets.append((name, options))
            return real_secret(name, **options)
        ours = {k: v for k, v in os.environ.items() if not k.startswith("MINICPMO_")} | environment
        with mock.patch.object(modal.App, "function", function), mock.patch.object(modal.App, "server", server), \
             mock.patch.object(modal.Image, "from_dockerfile", image), mock.patch.object(modal.Volume, "from_name", volume), \
             mock.patch.object(modal.Secret, "from_name", secret), mock.patch.dict(os.environ, ours, clear=True):
            spec = importlib.util.spec_from_file_location("modal_app", SOURCE / "modal/app.py")
            self.module = importlib.util.module_from_spec(spec)
            sys.modules["modal_app"] = self.module
            spec.loader.exec_module(self.module)


class App(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.loaded = Loaded()
        cls.module = cls.loaded.module

    def test_what_there_is(self):
        self.assertEqual(self.module.app.name, "gst-minicpmo")
        self.assertEqual(sorted(self.loaded.functions), ["download", "measure"])
        self.assertEqual(list(self.loaded.servers), ["CallServer"])
        self.assertIsInstance(self.module.CallServer, modal.Server)

    def test_image_is_the_containers(self):
        path, options = self.loaded.dockerfile
        self.assertEqual(path, SOURCE / "modal/Dockerfile")
        self.assertEqual(options["context_dir"], SOURCE)
        named = {n for stage in dockerfile.stages(path) for step in stage.instructions if step.name == "ARG"
                 for n in dockerfile.assignments(step.rest)}
        self.assertLessEqual(set(options["build_args"]), named)
        self.assertEqual(options["build_args"]["RUN_AS"], "root")
        for part in ("tools/bench.d/bench.py", "tools/turns.d/records.py", "tools/tiny/samples/q01_cap.wav", "tools/checkpoint.d/__main__.py",
                     "tools/requirements-reference.txt", "tools/requirements-checkpoint.txt", "modal/serve.py"):
            self.assertTrue((SOURCE / part).exists(), part)

    def test_gpus(self):
        self.assertEqual(self.loaded.functions["measure"]["gpu"], "A10G")
        self.assertEqual(self.loaded.servers["CallServer"]["gpu"], "A10G")
        self.assertNotIn("gpu", self.loaded.functions["download"])
        for gpu in ("L4", "L40S", "A100-40GB", "A100-80GB", "H100"):
            self.assertEqual(Loaded(MINICPMO_GPU=gpu).servers["CallServer"]["gpu"], gpu)
        # 18 GB with the first call, 1.5 GB for each further one: there is room for one more than are allowed.
        for gpu, calls in self.module.CALLS.items():
            self.assertLessEqual(18 + 1.5 * calls, self.module.MEMORY_GB[gpu], gpu)
            self.assertLessEqual(calls / self.module.BANDWIDTH[gpu], 48 / 4800, gpu)
        self.assertEqual(self.module.CALLS, {"A10G": 4, "L4": 3, "L40S": 8, "A100-40GB": 14, "A100-80GB": 20, "H100": 33})

    def test_volume(self):
        self.assertEqual(self.loaded.volumes, [("gst-minicpmo-weights", {"create_if_missing": True})])
        for made in (*self.loaded.functions.values(), *self.loaded.servers.values()):
            self.assertEqual(list(made["volumes"]), ["/weights"])
        self.assertTrue(self.module.MODEL.startswith("/weights/"))

    def test_secret(self):
        self.assertEqual(self.loaded.secrets, [("gst-minicpmo", {"required_keys": ["MINICPMO_CALL_TOKEN"]})])
        self.assertEqual(len(self.loaded.servers["CallServer"]["secrets"]), 1)

    def test_server(self):
        made = self.loaded.servers["CallServer"]
        self.assertEqual(made["env"], {"PORT": str(made["port"]), "MINICPMO_MODEL": self.module.MODEL, "MINICPMO_MAX_CALLS": "4"})
        self.assertTrue(made["unauthenticated"])
        self.assertGreater(made["max_concurrency"], 4)
        self.assertLess(made["target_concurrency"], 4)
        self.assertEqual((made["min_containers"], made["max_containers"]), (0, 4))
        self.assertGreaterEqual(made["startup_timeout"], 120)
        sys.path.insert(0, str(SOURCE / "modal"))
        import serve
        self.assertLess(serve.DRAIN_S, 30, "Modal kills a container 30 s after it asked")
        self.assertGreaterEqual(made["exit_grace_period"], serve.DRAIN_S)
        self.assertFalse(made["enable_memory_snapshot"])

    def test_settings(self):
        made = Loaded(MINICPMO_MAX_CALLS="2", MINICPMO_MIN_CONTAINERS="1", MINICPMO_MAX_CONTAINERS="9", MINICPMO_SNAPSHOT="1",
                      MINICPMO_REGION="eu-west").servers["CallServer"]
        self.assertEqual(made["env"]["MINICPMO_MAX_CALLS"], "2")
        self.assertEqual((made["min_containers"], made["max_containers"], made["routing_region"]), (1, 9, "eu-west"))
        self.assertTrue(made["enable_memory_snapshot"])
        self.assertEqual(made["experimental_options"], {"enable_gpu_snapshot": True})

    def test_bad_settings(self):
        for name, value in (("MINICPMO_GPU", "T4"), ("MINICPMO_MAX_CALLS", "0"), ("MINICPMO_MIN_CONTAINERS", "-1"), ("MINICPMO_SNAPSHOT", "yes")):
            with self.assertRaisesRegex(SystemExit, f"{name}={value}"):
                Loaded(**{name: value})

    def test_comparison_with_the_exercise(self):
        found = {"median": 64.2, "low": 64.0, "high": 64.4}, {"median": 0.039, "low": 0.038, "high": 0.04}
        text = self.module.comparison({"typed": {"summary": {"elements": dict(zip(("ttfb_ms", "rtf"), found))}}})
        self.assertRegex(text, r"typed ttfb_ms +64\.200 +\[64\.000, 64\.400\] +2000 +1000")
        self.assertRegex(text, r"typed rtf +0\.039 +\[0\.038, 0\.040\] +1\.1 +0\.5")

    def test_bench_runs_here(self):
        """The benchmark as on Modal, with the small checkpoint on this CPU."""
        ask = pathlib.Path(os.environ["ASK"])
        with mock.patch.dict(os.environ, {"PATH": f"{ask.parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}), \
             tempfile.TemporaryFile("w+") as out, mock.patch("sys.stdout", out):
            result = self.module.measured(False, 1, "", SOURCE / "tools", "cpu")
        self.assertEqual(len(result["turns"]["elements"]), 6)
        self.assertIn("typed ttfb_ms", self.module.comparison({"typed": result}))

    def test_modal_finds_it(self):
        """The name that the commands in README.md use, from the top of the checkout."""
        done = subprocess.run([sys.executable, "-m", "modal", "run", "modal/app.py::bench", "--help"], cwd=SOURCE, capture_output=True, text=True,
                              timeout=60, env={k: v for k, v in os.environ.items() if not k.startswith("MINICPMO_")})
        self.assertIn("--processes", done.stdout, done.stderr)


if __name__ == "__main__":
    tap.main()
