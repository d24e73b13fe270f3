"""MiniCPM-o 2.6 as a realtime voice on Modal (modal.com). From the top of the checkout:

    pip install -r tools/requirements-modal.txt && modal setup      # once
    modal run modal/app.py::download                                # the published weights into a volume, once
    modal run modal/app.py::bench                                   # TTFB and RTF, typed and spoken; writes bench.json
    modal secret create gst-minicpmo MINICPMO_CALL_TOKEN=$(openssl rand -hex 32)    # once, before serving
    modal deploy modal/app.py                                       # the call server; prints its address

Read where these commands run, so that they hold for one deployment:

    MINICPMO_GPU              A10G (default), L4, L40S, A100-40GB, A100-80GB, H100
    MINICPMO_MAX_CALLS        calls a container (default: by the GPU's memory and speed, see CALLS)
    MINICPMO_MIN_CONTAINERS   containers kept warm (default 0: none costs anything while nobody calls)
    MINICPMO_MAX_CONTAINERS   at most (default 4)
    MINICPMO_REGION           Modal's routing region (default us-east)
    MINICPMO_SNAPSHOT         1: containers start from a memory snapshot, GPU memory too (experimental at Modal)

The secret may also hold MINICPMO_TRANSPORT, MINICPMO_STUN_SERVER, MINICPMO_TURN_SERVERS and MINICPMO_ORIGINS (modal/serve.py).
"""
import json
import os
import pathlib
import subprocess
import sys

import modal

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
PYTHON = "3.11"
PORT = 8000
WEIGHTS = "/weights"
MODEL = f"{WEIGHTS}/MiniCPM-o-2_6"

# GB of memory. The weights and the first call take 18 GB, each further call 1.5 GB (PERF.md); one call's room stays free.
MEMORY_GB = {"A10G": 24, "L4": 24, "L40S": 48, "A100-40GB": 40, "A100-80GB": 80, "H100": 80}
FIRST_CALL_GB, NEXT_CALL_GB = 18.0, 1.5
# GB/s of the data sheets. An H200 (4800) answered 48 calls in time (PERF.md); for these GPUs, which were not measured, as many
# fewer as their memory is slower: most of the work is reading the weights.
BANDWIDTH = {"A10G": 600, "L4": 300, "L40S": 864, "A100-40GB": 1555, "A100-80GB": 2039, "H100": 3350}
MEASURED_CALLS, MEASURED_BANDWIDTH = 48, 4800
CALLS = {gpu: max(1, min(int((gb - FIRST_CALL_GB) / NEXT_CALL_GB), MEASURED_CALLS * BANDWIDTH[gpu] // MEASURED_BANDWIDTH))
         for gpu, gb in MEMORY_GB.items()}
# Requests that are no calls: the page, its files, signalling, probes.
OTHER_REQUESTS = 8


def setting(name: str, default: int, low: int, high: int) -> int:
    text = os.environ.get(name, "") or str(default)
    if not text.isdigit() or not low <= int(text) <= high:
        raise SystemExit(f"{name}={text}: must be a whole number from {low} to {high}")
    return int(text)


def chosen_gpu() -> str:
    gpu = os.environ.get("MINICPMO_GPU") or "A10G"
    if gpu not in MEMORY_GB:
        raise SystemExit(f"MINICPMO_GPU={gpu}: must be one of {', '.join(MEMORY_GB)}")
    return gpu


GPU = chosen_gpu()
MAX_CALLS = setting("MINICPMO_MAX_CALLS", CALLS[GPU], 1, 100)
MIN_CONTAINERS = setting("MINICPMO_MIN_CONTAINERS", 0, 0, 100)
MAX_CONTAINERS = setting("MINICPMO_MAX_CONTAINERS", 4, 1, 100)
SNAPSHOT = setting("MINICPMO_SNAPSHOT", 0, 0, 1) == 1

app = modal.App("gst-minicpmo")
weights = modal.Volume.from_name("gst-minicpmo-weights", create_if_missing=True)

# The container of modal/Dockerfile. Modal runs what it adds as root.
image = modal.Image.from_dockerfile(ROOT / "modal/Dockerfile", context_dir=ROOT, build_args={"RUN_AS": "root"}, add_python=PYTHON)
serve_image = image.add_local_file(HERE / "serve.py", "/root/serve.py")
bench_image = image
for part in ("bench.d", "turns.d", "tiny/samples"):
    bench_image = bench_image.add_local_dir(ROOT / "tools" / part, f"/opt/bench/tools/{part}")
# PyTorch, to read one pickle among the published files; no GPU.
download_image = (modal.Image.debian_slim(python_version=PYTHON)
                  .pip_install_from_requirements(str(ROOT / "tools/requirements-reference.txt"))
                  .pip_install_from_requirements(str(ROOT / "tools/requirements-checkpoint.txt"))
                  .add_local_dir(ROOT / "tools/checkpoint.d", "/opt/checkpoint.d"))


@app.function(image=download_image, volumes={WEIGHTS: weights}, cpu=4, memory=16384, timeout=2 * 3600)
def download():
    """The published model into the volume: fetched, converted, checked. Goes on where it was cut."""
    for words in (["fetch"], ["convert"], ["check", "--write-manifest"]):
        print("checkpoint", *words, flush=True)
        subprocess.run([sys.executable, "/opt/checkpoint.d", *words, "--quiet", MODEL], check=True)
        weights.commit()


def measured(spoken: bool, processes: int, model: str, tools: pathlib.Path, device: str = "cuda:0") -> dict:
    """What tools/bench.d/bench.py finds: machine, summary, turns."""
    result = pathlib.Path("/tmp/spoken.json" if spoken else "/tmp/typed.json")
    result.unlink(missing_ok=True)
    words = [sys.executable, tools / "bench.d/bench.py", "--ask", "minicpmo-ask", "--device", device, "--processes", processes,
             "--json", result, *(["--model", model] if model else []), *(["--spoken"] if spoken else [])]
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True)
    print(done.stdout, done.stderr, sep="\n", flush=True)
    if not result.exists():
        raise RuntimeError(f"the benchmark ended with status {done.returncode}; what it said stands above")
    return json.loads(result.read_text())


@app.function(image=bench_image, gpu=GPU, volumes={WEIGHTS: weights.read_only()}, memory=8192, timeout=3600)
def measure(processes: int) -> dict:
    """Both benchmarks, on a GPU."""
    if not pathlib.Path(MODEL, "SHA256SUMS").exists():
        raise RuntimeError(f"{MODEL} is not in the volume: modal run modal/app.py::download")
    return {"typed": measured(False, processes, MODEL, pathlib.Path("/opt/bench/tools")),
            "spoken": measured(True, processes, MODEL, pathlib.Path("/opt/bench/tools"))}


# Of the public exercise, on an A10G: upstream's code, and what was asked for.
EXERCISE = {"ttfb_ms": (2000, 1000), "rtf": (1.1, 0.5)}


def comparison(results: dict) -> str:
    """Median and 95 % interval beside the exercise's figures. Lower is better."""
    lines = [f"{'':24}{'median':>10}{'interval':>22}{'exercise began at':>20}{'and wanted':>12}"]
    for kind, result in results.items():
        summary = result["summary"]["elements"]
        for key, (before, wanted) in EXERCISE.items():
            found = summary[key]
            interval = f"[{found['low']:.3f}, {found['high']:.3f}]"
            lines.append(f"{kind + ' ' + key:24}{found['median']:>10.3f}{interval:>22}{before:>20g}{wanted:>12g}")
    return "\n".join(lines)


@app.local_entrypoint()
def bench(processes: int = 3, output: str = "bench.json"):
    """Prints TTFB and RTF beside the exercise's figures, and saves all of them."""
    results = measure.remote(processes)
    pathlib.Path(output).write_text(json.dumps(results, indent=1) + "\n")
    print(results["typed"]["machine"])
    print(comparison(results))
    print(f"all figures: {output}")


@app.server(image=serve_image, gpu=GPU, memory=8192, volumes={WEIGHTS: weights.read_only()},
            secrets=[modal.Secret.from_name("gst-minicpmo", required_keys=["MINICPMO_CALL_TOKEN"])],
            env={"PORT": str(PORT), "MINICPMO_MODEL": MODEL, "MINICPMO_MAX_CALLS": str(MAX_CALLS)},
            port=PORT, startup_timeout=300, exit_grace_period=25, routing_region=os.environ.get("MINICPMO_REGION") or "us-east",
            # Modal counts requests under way. A call over a WebSocket is one; a WebRTC call is none, and what is too much for a
            # container is refused by the call server.
            target_concurrency=max(1, MAX_CALLS - 1), max_concurrency=MAX_CALLS + OTHER_REQUESTS,
            min_containers=MIN_CONTAINERS, max_containers=MAX_CONTAINERS, scaledown_window=120,
            # Browsers cannot send Modal's own keys with a WebSocket: the call server asks for its token itself.
            unauthenticated=True,
            enable_memory_snapshot=SNAPSHOT, experimental_options={"enable_gpu_snapshot": True} if SNAPSHOT else None)
class CallServer:
    @modal.enter(snap=SNAPSHOT)
    def start(self):
        import serve
        self.server = serve.CallServer()
        self.server.start()

    @modal.exit()
    def stop(self):
        self.server.stop()
