"""The borders of the project: who may include and link what. BUILD and SOURCE come from the environment."""
import os
import pathlib
import re
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "support"))
import tap  # noqa: E402

SOURCE = pathlib.Path(os.environ["SOURCE"])
BUILD = pathlib.Path(os.environ["BUILD"])
PLUGIN = BUILD / "plugins/minicpmo/libgstminicpmo.so"
BACKEND = BUILD / "elements/backend/libminicpmo-torch.so"


def sources(*folders: str) -> list[pathlib.Path]:
    return [p for f in folders for p in sorted((SOURCE / f).rglob("*")) if p.suffix in (".cpp", ".h", ".cu")]


def includes(path: pathlib.Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', path.read_text(), re.MULTILINE)


def needed(library: pathlib.Path) -> list[str]:
    out = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    return re.findall(r"\(NEEDED\).*\[(.*)\]", out)


def is_shell(path: pathlib.Path) -> bool:
    """The GObject side: gst*, the guard, and the plugin."""
    return path.name.startswith("gst") or path.name == "guard.h" or "plugins" in path.parts


class Layout(unittest.TestCase):
    def test_elements_know_nothing_of_torch(self):
        for path in filter(is_shell, sources("elements", "plugins")):
            bad = [i for i in includes(path) if re.match(r"(ATen|c10|torch)/", i) or
                   (i.startswith("engine/") and not i.endswith("json_file.h"))]
            self.assertEqual(bad, [], path)

    def test_stages_know_nothing_of_gstreamer(self):
        for path in sources("elements"):
            if not is_shell(path):
                self.assertEqual([i for i in includes(path) if i.startswith("gst/")], [], path)

    def test_both_sides_exist(self):
        shells = [p for p in sources("elements") if is_shell(p)]
        self.assertGreater(len(shells), 8)
        self.assertGreater(len(sources("elements")) - len(shells), 15)

    def test_no_umbrella_header_of_torch(self):
        for path in sources("elements", "tests"):
            self.assertEqual([i for i in includes(path) if i in ("torch/torch.h", "ATen/ATen.h", "torch/all.h")], [], path)

    def test_plugin_links_no_torch(self):
        self.assertEqual([n for n in needed(PLUGIN) if re.search("torch|c10|cuda|cudart", n)], [])

    def test_plugin_has_no_symbol_of_torch(self):
        out = subprocess.run(["nm", "-DC", PLUGIN], capture_output=True, text=True, check=True).stdout
        self.assertEqual(re.findall(r".*\b(?:at|c10|torch)::.*", out), [])

    def test_backend_links_no_gstreamer_and_no_cuda(self):
        self.assertEqual([n for n in needed(BACKEND) if re.search("gst|libtorch_cuda|libtorch.so|cudart", n)], [])

    def test_backend_exports_one_symbol(self):
        out = subprocess.run(["nm", "-D", "--defined-only", BACKEND], capture_output=True, text=True, check=True).stdout
        ours = [line.split()[-1] for line in out.splitlines() if " T " in line and "_ZN" not in line]
        self.assertEqual(ours, ["minicpmo_backend"])

    def test_published_sizes_stand_nowhere_in_the_code(self):
        """Sizes come from the checkpoint: none of the large model's may be written into a stage. config.cpp alone knows
        the defaults of the published configuration class, which stand for keys that the published file leaves out."""
        for path in sources("elements"):
            if path.name == "config.cpp":
                continue
            code = re.sub(r"//.*", "", path.read_text())
            self.assertEqual(re.findall(r"\b(?:3584|18944|151700|21178|21143|21132)\b", code), [], path)

    def test_files_stay_readable(self):
        long = [(p.name, n) for p in sources("elements", "plugins", "tools")
                if (n := len(p.read_text().splitlines())) > 600]
        self.assertEqual(long, [])


if __name__ == "__main__":
    tap.main()
