"""tools/checkpoint on small checkpoints: make, check (every kind of damage), convert, the engine on a made checkpoint.

Environment: SOURCE (the checkout), ASK (minicpmo-ask; tests that need it are skipped where it is not built).
tests/fixtures/checkpoint/tensors.json: names and shapes of the published audio encoder, speech decoder and Vocos, as their
Python classes make them; "*" counts from 0, the number behind the shape says how far.
"""
import hashlib
import json
import math
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import tempfile
import unittest

SOURCE = pathlib.Path(os.environ.get("SOURCE") or pathlib.Path(__file__).resolve().parents[2])
PROGRAM = SOURCE / "tools/checkpoint.d"
sys.path[:0] = [str(SOURCE / "tests/support"), str(PROGRAM)]
import tap  # noqa: E402

try:
    import numpy as np
    import layout
    import presets
    import reply
    import weights
except ImportError as e:
    print(f"1..0 # SKIP needs the Python packages of tools/requirements-test.txt: {e}")
    sys.exit(0)

SHARDS = [f"model-{n:05d}-of-00004.safetensors" for n in range(1, 5)]
INDEX = "model.safetensors.index.json"
UP = "llm.model.layers.0.mlp.up_proj.weight"
PINNED = "545144ef7a1e3d4b"  # sha256 of that tensor, preset 2.6-small, seed 1


def checkpoint(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, PROGRAM, *map(str, arguments)], capture_output=True, text=True, timeout=300)


def made(folder: pathlib.Path, *arguments: object) -> pathlib.Path:
    run = checkpoint("make", "--quiet", *arguments, folder)
    if run.returncode:
        raise RuntimeError(run.stdout + run.stderr)
    return folder


def header_of(path: pathlib.Path) -> tuple[dict, bytes]:
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8:8 + size]), data[8 + size:]


class Folder(unittest.TestCase):
    """One checkpoint for the class; `self.folder` is a copy of it (hard links) for each test."""

    @classmethod
    def setUpClass(cls):
        cls._keep = tempfile.TemporaryDirectory()
        cls.base = pathlib.Path(cls._keep.name)
        cls.good = made(cls.base / "good", "--preset", "2.6-small", "--seed", 1)

    @classmethod
    def tearDownClass(cls):
        cls._keep.cleanup()

    def setUp(self):
        self.folder = self.base / self.id().rsplit(".", 1)[-1]
        shutil.copytree(self.good, self.folder, copy_function=os.link)

    def tearDown(self):
        shutil.rmtree(self.folder)

    def replace(self, name: str, data: bytes) -> None:
        (self.folder / name).unlink()
        (self.folder / name).write_bytes(data)

    def edit(self, name: str, change) -> None:
        value = json.loads((self.folder / name).read_text())
        change(value)
        self.replace(name, json.dumps(value).encode())

    def edit_header(self, name: str, change) -> None:
        header, data = header_of(self.folder / name)
        data = change(header, data) or data
        text = json.dumps(header).encode()
        self.replace(name, struct.pack("<Q", len(text)) + text + data)

    def shard_of(self, tensor: str) -> str:
        return json.loads((self.folder / INDEX).read_text())["weight_map"][tensor]

    def assert_found(self, *texts: str, options: tuple[str, ...] = ()) -> None:
        run = checkpoint("check", "--quiet", *options, self.folder)
        self.assertEqual(run.returncode, 1, run.stdout)
        self.assertEqual(run.stderr, "")
        for text in texts:
            self.assertIn(text, run.stdout)


class Layout(unittest.TestCase):
    def test_names_shapes_and_order_are_the_published_ones(self):
        fixture = json.loads((SOURCE / "tests/fixtures/checkpoint/tensors.json").read_text())
        tensors = layout.checkpoint_tensors(presets.FULL)
        for part, ours in (("apm", {n: s for n, s in tensors.items() if n.startswith("apm.")}),
                           ("tts", {n: s for n, s in tensors.items() if n.startswith("tts.")}),
                           ("vocos", layout.vocos_tensors(presets.FULL))):
            expected = {name.replace("*", str(n)): tuple(shape)
                        for name, (shape, count) in fixture[part]["names"].items() for n in range(count)}
            self.assertEqual(len(expected), fixture[part]["tensors"])
            self.assertEqual(ours, expected, part)

    def test_four_shards_have_the_published_sizes(self):
        sizes = {name: 2 * math.prod(shape) for name, shape in layout.checkpoint_tensors(presets.FULL).items()}
        gigabytes = [round(sum(sizes[n] for n in names) / 1e9, 2) for names in layout.split(sizes, 4)]
        self.assertEqual(gigabytes, [4.88, 4.93, 4.33, 3.21])

    def test_small_checkpoint_of_the_repository(self):
        run = checkpoint("check", "--finite", "--quiet", SOURCE / "tools/tiny/model")
        self.assertEqual((run.returncode, run.stderr), (0, ""), run.stdout)

    def test_widths_come_from_the_configuration(self):
        config = presets.config("2.6-small", {}, dict(llm=3, audio=1, tts=4, vision=1))
        tensors = layout.checkpoint_tensors(config)
        self.assertEqual(tensors["llm.model.layers.2.mlp.up_proj.weight"], (128, 64))
        self.assertIn("tts.model.layers.3.mlp.up_proj.weight", tensors)
        for absent in ("llm.model.layers.3.", "apm.layers.1.", "tts.model.layers.4.", "vpm.encoder.layers.1."):
            self.assertEqual([n for n in tensors if n.startswith(absent)], [])

    def test_nonsense_in_the_configuration(self):
        for key, value in (("hidden_size", None), ("hidden_size", "64"), ("num_hidden_layers", True), ("vocab_size", -1)):
            with self.assertRaisesRegex(layout.ConfigError, key):
                layout.checkpoint_tensors(presets.FULL | {key: value})


class Make(Folder):
    def test_made_is_right(self):
        run = checkpoint("check", "--finite", "--quiet", self.folder)
        self.assertEqual((run.returncode, run.stderr), (0, ""), run.stdout)
        self.assertEqual(sorted(p.name for p in self.folder.glob("model-*")), SHARDS)

    def test_all_presets_and_depths(self):
        depths = ["--llm-layers", 3, "--tts-layers", 1, "--audio-layers", 4, "--vision-layers", 1]
        for n, options in enumerate((["--preset", "tiny-random"], ["--preset", "2.6-small", *depths])):
            folder = made(self.folder / f"other{n}", *options)
            run = checkpoint("check", "--quiet", folder)
            self.assertEqual(run.returncode, 0, run.stdout)

    def test_vision_is_there(self):
        names = json.loads((self.folder / INDEX).read_text())["weight_map"]
        self.assertIn("vpm.encoder.layers.1.self_attn.k_proj.weight", names)
        self.assertIn("resampler.attn.in_proj_weight", names)
        self.assertIn("tts.model.embed_tokens.weight", names)

    def test_same_seed_same_bytes(self):
        again = made(self.folder / "again", "--preset", "2.6-small", "--seed", 1)
        other = made(self.folder / "other", "--preset", "2.6-small", "--seed", 2)
        for name in [*SHARDS, INDEX, "tokenizer.json", "config.json", "assets/Vocos.safetensors",
                     "assets/chattts_tokenizer/tokenizer.json"]:
            self.assertEqual((again / name).read_bytes(), (self.good / name).read_bytes(), name)
        for name in SHARDS:
            self.assertNotEqual((other / name).read_bytes(), (self.good / name).read_bytes(), name)

    def test_one_process_or_many_give_the_same_bytes(self):
        options = ("--preset", "2.6-small", "--reply", "I think so.")
        one, many = (made(self.folder / f"by{n}", *options, "--processes", n) for n in (1, 5))
        for name in [*SHARDS, "assets/Vocos.safetensors"]:
            self.assertEqual((one / name).read_bytes(), (many / name).read_bytes(), name)

    def test_a_tensor_of_several_pieces(self):
        rules = weights.Rules(presets.FULL, "chance", (5, 7, 9))
        width = 1000  # rows that do not begin where pieces do
        pieces = [weights.generate(1, weights.HEAD, (10000, width), "F32", rules, n) for n in range(3)]
        self.assertEqual([len(p) for p in pieces], [weights.PIECE, weights.PIECE, 10000 * width - 2 * weights.PIECE])
        values = weights.table(rules.deviation(weights.HEAD, (1, width)), "F32")
        again = weights.draw_across(1, weights.HEAD, weights.PIECE - 3, 7, values)
        self.assertEqual(np.concatenate(pieces)[weights.PIECE - 3:weights.PIECE + 4].tolist(), again.tolist())

    def test_values_do_not_change_from_version_to_version(self):
        header, data = header_of(self.folder / self.shard_of(UP))
        begin, end = header[UP]["data_offsets"]
        self.assertEqual(hashlib.sha256(data[begin:end]).hexdigest()[:16], PINNED)

    def test_matrices_are_normal_with_their_deviation(self):
        header, data = header_of(self.folder / self.shard_of(UP))
        begin, end = header[UP]["data_offsets"]
        values = (np.frombuffer(data[begin:end], "<u2").astype("<u4") << 16).view("<f4")
        self.assertAlmostEqual(float(values.std()) * math.sqrt(header[UP]["shape"][1]), 1, delta=0.03)
        self.assertAlmostEqual(float(values.mean()), 0, delta=0.01)
        self.assertAlmostEqual(float((np.abs(values) < values.std()).mean()), 0.683, delta=0.02)

    def test_a_directory_with_files_is_left_alone(self):
        run = checkpoint("make", "--preset", "2.6-small", self.folder)
        self.assertEqual(run.returncode, 1)
        self.assertIn("is not empty", run.stderr)


class Activations(unittest.TestCase):
    def test_residual_stays_sane_through_28_layers(self):
        config = presets.config("2.6-small", {}, dict(llm=28))
        rules, shapes = weights.Rules(config, "chance"), layout.checkpoint_tensors(config)

        def load(name: str) -> np.ndarray:
            return weights.generate(3, name, shapes[name], "F32", rules, 0).reshape(shapes[name])

        def normed(x: np.ndarray) -> np.ndarray:
            return x / np.sqrt((x * x).mean(-1, keepdims=True))
        x = np.random.default_rng(1).standard_normal((8, 64))
        for n in range(28):
            p = f"llm.model.layers.{n}."
            # One position: attention hands on its own value, one head for each group of queries.
            v = (normed(x) @ load(p + "self_attn.v_proj.weight").T + load(p + "self_attn.v_proj.bias")).reshape(8, 2, 1, 16)
            x = x + np.repeat(v, 2, axis=2).reshape(8, 64) @ load(p + "self_attn.o_proj.weight").T
            gate = normed(x) @ load(p + "mlp.gate_proj.weight").T
            up = normed(x) @ load(p + "mlp.up_proj.weight").T
            x = x + gate / (1 + np.exp(-gate)) * up @ load(p + "mlp.down_proj.weight").T
        self.assertGreater(x.std(), 1.0)
        self.assertLess(x.std(), 2.5)


class Damage(Folder):
    def test_missing_files(self):
        (self.folder / SHARDS[1]).unlink()
        (self.folder / "tokenizer.json").unlink()
        (self.folder / "assets/Vocos.safetensors").unlink()
        self.assert_found(f"{SHARDS[1]}: missing", "tokenizer.json: missing", "assets/Vocos.safetensors: missing", "3 problems")

    def test_no_configuration(self):
        (self.folder / "config.json").unlink()
        self.assert_found("config.json: missing")

    def test_no_index(self):
        (self.folder / INDEX).unlink()
        self.assert_found(f"{INDEX}: missing")

    def test_no_directory(self):
        run = checkpoint("check", self.folder / "nowhere")
        self.assertEqual((run.returncode, run.stdout.strip()), (1, f"{self.folder}/nowhere: no such directory"))

    def test_vocos_is_not_converted(self):
        (self.folder / "assets/Vocos.safetensors").rename(self.folder / "assets/Vocos.pt")
        self.assert_found("tools/checkpoint convert")

    def test_cut_short(self):
        self.replace(SHARDS[3], (self.good / SHARDS[3]).read_bytes()[:-1])
        self.assert_found(f"{SHARDS[3]}: tensor", "the file is cut short")

    def test_cut_in_the_header(self):
        self.replace(SHARDS[3], (self.good / SHARDS[3]).read_bytes()[:100])
        self.assert_found(f"{SHARDS[3]}: header size", "cut short")

    def test_bytes_too_many(self):
        self.replace(SHARDS[3], (self.good / SHARDS[3]).read_bytes() + b"xyz")
        self.assert_found(f"{SHARDS[3]}: 3 bytes follow the last tensor")

    def test_git_lfs_pointer(self):
        self.replace(SHARDS[0], b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4\n")
        self.assert_found(f"{SHARDS[0]}: a Git LFS pointer")

    def test_pickle_under_a_false_name(self):
        self.replace(SHARDS[0], b"PK\x03\x04\xff\xff\xff\xff" + bytes(100))
        self.assert_found(f"{SHARDS[0]}: a pickle")

    def test_header_that_is_no_json(self):
        self.replace(SHARDS[0], struct.pack("<Q", 4) + b"{\"a\"")
        self.assert_found(f"{SHARDS[0]}: header is not valid JSON")

    def test_name_twice(self):
        text = b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'
        self.replace(SHARDS[0], struct.pack("<Q", len(text)) + text)
        self.assert_found(f'{SHARDS[0]}: header has the key "a" twice')

    def test_overlapping_tensors(self):
        def change(header, data):
            size = header[UP]["data_offsets"][1] - header[UP]["data_offsets"][0]
            header[UP]["data_offsets"] = [0, size]
        name = self.shard_of(UP)
        self.edit_header(name, change)
        self.assert_found(f"{name}: tensor", "inside another tensor")

    def test_shape_and_size_disagree(self):
        self.edit_header(self.shard_of(UP), lambda header, data: header[UP].update(shape=[1, 1]))
        self.assert_found(f'tensor "{UP}": shape and dtype need 2 bytes')

    def test_wrong_shape(self):
        self.edit_header(self.shard_of(UP), lambda header, data: header[UP].update(shape=[64, 128]))
        self.assert_found(f"{self.shard_of(UP)}: shape of {UP} is [64, 128], config.json wants [128, 64]")

    def test_wrong_dtype(self):
        self.edit_header(self.shard_of(UP), lambda header, data: header[UP].update(dtype="F16"))
        self.assert_found(f"{self.shard_of(UP)}: 1 tensors are F16, not BF16: {UP}")

    def test_missing_tensor(self):
        def change(header, data):
            last = max((n for n in header if n != "__metadata__"), key=lambda n: header[n]["data_offsets"][1])
            self.lost = last
            return data[:header.pop(last)["data_offsets"][0]]
        self.edit_header(SHARDS[3], change)
        self.assert_found(f"{SHARDS[3]}: does not hold {self.lost}", "metadata.total_size")

    def test_tensor_that_nobody_names(self):
        self.edit(INDEX, lambda index: index["weight_map"].pop(UP))
        self.assert_found(f"holds {UP}, which {INDEX} does not place there", f"1 tensors of llm are missing: {UP}")

    def test_tensor_of_another_model(self):
        def change(header, data):
            header["llm.extra"] = header.pop(UP)
        name = self.shard_of(UP)
        self.edit_header(name, change)
        self.edit(INDEX, lambda index: index["weight_map"].update({"llm.extra": index["weight_map"].pop(UP)}))
        self.assert_found(f"{name}: 1 tensors do not belong to this model: llm.extra", f"of llm are missing: {UP}")

    def test_file_name_that_leads_out(self):
        self.edit(INDEX, lambda index: index["weight_map"].update({UP: "../evil.safetensors"}))
        self.assert_found(f"{INDEX}: weight_map")

    def test_total_size(self):
        self.edit(INDEX, lambda index: index["metadata"].update(total_size=5))
        self.assert_found(f"{INDEX}: metadata.total_size is 5")

    def test_another_depth(self):
        self.edit("config.json", lambda config: config.update(num_hidden_layers=3))
        self.assert_found("weights: 12 tensors of llm are missing")

    def test_another_width(self):
        self.edit("config.json", lambda config: config.update(hidden_size=68))
        self.assert_found("config.json wants", "more shapes are wrong", "they must be equal")

    def test_another_model(self):
        self.edit("config.json", lambda config: config.update(model_type="qwen2", version="4.5"))
        self.assert_found("model_type is 'qwen2'", "version is '4.5'")

    def test_heads_that_do_not_divide(self):
        self.edit("config.json", lambda config: config["audio_config"].update(encoder_attention_heads=5))
        self.assert_found("audio_config.encoder_attention_heads is 5, which does not divide d_model 64")

    def test_token_missing(self):
        def change(tokenizer):
            tokenizer["added_tokens"] = [t for t in tokenizer["added_tokens"] if t["content"] != "<|tts_bos|>"]
        self.edit("tokenizer.json", change)
        self.assert_found("tokenizer.json: has no token <|tts_bos|>")

    def test_vocabulary_too_large(self):
        self.edit("config.json", lambda config: config["tts_config"].update(num_text_tokens=21170))
        self.assert_found("has ids up to 21177, but tts_config.num_text_tokens of config.json is 21170")

    def test_another_speaker_token(self):
        self.edit("config.json", lambda config: config["tts_config"].update(spk_emb_token_id=7))
        self.assert_found("token [spk_emb] is 21143, tts_config.spk_emb_token_id of config.json is 7")

    def test_values_that_are_not_finite(self):
        def change(header, data):
            at = header[UP]["data_offsets"][0]
            return data[:at] + b"\xc0\x7f\x80\xff" + data[at + 4:]
        self.edit_header(self.shard_of(UP), change)
        self.assertEqual(checkpoint("check", "--quiet", self.folder).returncode, 0)
        self.assert_found(f"{UP} holds 2 values of 8192 that are not finite", options=("--finite",))


class Manifest(Folder):
    def setUp(self):
        super().setUp()
        run = checkpoint("check", "--quiet", "--write-manifest", self.folder)
        self.assertEqual(run.returncode, 0, run.stdout)

    def test_is_what_sha256sum_reads(self):
        run = subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=self.folder, capture_output=True, text=True)
        self.assertEqual((run.returncode, run.stdout), (0, ""), run.stderr)
        self.assertEqual(checkpoint("check", "--quiet", self.folder).returncode, 0)

    def test_one_changed_bit(self):
        data = bytearray((self.folder / SHARDS[2]).read_bytes())
        data[-1] ^= 1
        self.replace(SHARDS[2], bytes(data))
        self.assert_found(f"{SHARDS[2]}: sha256 is ")
        self.assertEqual(checkpoint("check", "--quiet", "--quick", self.folder).returncode, 0)

    def test_file_that_is_gone(self):
        (self.folder / "merges.txt").unlink()
        self.assert_found("merges.txt: missing; SHA256SUMS names it")

    def test_name_that_leads_out(self):
        self.replace("SHA256SUMS", b"0" * 64 + b"  ../../etc/passwd\n")
        self.assert_found("SHA256SUMS: line 1 is not a digest and a file of this directory")

    def test_no_manifest_of_a_damaged_checkpoint(self):
        before = (self.folder / "SHA256SUMS").read_bytes()
        (self.folder / SHARDS[0]).unlink()
        self.assert_found(f"{SHARDS[0]}: missing", options=("--write-manifest",))
        self.assertEqual((self.folder / "SHA256SUMS").read_bytes(), before)


class Tokenizers(Folder):
    def setUp(self):
        try:
            import tokenizers
        except ImportError as e:
            self.skipTest(str(e))
        super().setUp()
        self.language = tokenizers.Tokenizer.from_file(str(self.good / "tokenizer.json"))
        self.speech = tokenizers.Tokenizer.from_file(str(self.good / "assets/chattts_tokenizer/tokenizer.json"))

    def test_published_ids(self):
        expected = {"!": 0, "Ċ": 198, "user": 872, "assistant": 77091, "<unk>": 128244, "<|endoftext|>": 151643,
                    "<|im_start|>": 151644, "<|im_end|>": 151645, "<image>": 151665, "</query>": 151684,
                    "<|audio_start|>": 151685, "<|audio_end|>": 151687, "<|spk_bos|>": 151688, "<|spk|>": 151689,
                    "<|spk_eos|>": 151690, "<|tts_bos|>": 151691, "<|tts_eos|>": 151692, "<|vad_end|>": 151697,
                    "<reserved_53>": 151699}
        self.assertEqual({t: self.language.token_to_id(t) for t in expected}, expected)
        self.assertEqual(self.language.get_vocab_size(), 151700)
        speech = {"[PAD]": 0, "[UNK]": 100, "[Stts]": 21131, "[Ptts]": 21132, "[Etts]": 21133, "[spk_emb]": 21143,
                  "[speed_9]": 21177}
        self.assertEqual({t: self.speech.token_to_id(t) for t in speech}, speech)
        self.assertEqual(self.speech.get_vocab_size(), 21178)

    def test_template_is_what_it_should_be(self):
        ids = self.language.encode("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n").ids
        self.assertEqual(ids[:3], [151644, 872, 198])
        self.assertEqual(ids[-5:], [151645, 198, 151644, 77091, 198])

    def test_english_becomes_about_a_token_per_word(self):
        text = ("I'm fine, thank you! What's your favorite color? My name is John, and I would like to know how the weather "
                "is today.")
        words = len(text.split())
        for tokenizer, limit in ((self.language, 1.6), (self.speech, 1.8)):
            self.assertLess(len(tokenizer.encode(text).ids), limit * words)
        self.assertEqual(self.language.decode(self.language.encode(text).ids), text)

    def test_any_text_comes_back(self):
        text = "Zürich 12345 naïve — 漢字 \t\n\n  🙂 xyzzy ’quoted’"
        self.assertEqual(self.language.decode(self.language.encode(text).ids), text)

    def test_random_words_become_few_speech_tokens(self):
        ids = np.random.default_rng(1).integers(256, 151643, 3000).tolist()
        self.assertLess(len(self.speech.encode(self.language.decode(ids)).ids), 1.6 * len(ids))


class Reply(Folder):
    """A planted reply: numbers here, the engine's answer below."""

    def tokenizers(self):
        return reply.LanguageTokenizer(self.good), reply.SpeechTokenizer(self.good)

    def test_reads_as_the_tokenizers_do(self):
        try:
            import tokenizers
        except ImportError as e:
            self.skipTest(str(e))
        language = tokenizers.Tokenizer.from_file(str(self.good / "tokenizer.json"))
        speech = tokenizers.Tokenizer.from_file(str(self.good / "assets/chattts_tokenizer/tokenizer.json"))
        ours, ours_speech = self.tokenizers()
        for text in (presets.REPLIES["2.6"], "I'll see: 42 xylophones, won't we?", "Yes."):
            self.assertEqual(ours.encode(text), language.encode(text).ids)
            self.assertEqual(ours.text(ours.encode(text)), text)
            self.assertEqual(ours_speech.count(text), len(speech.encode(text, add_special_tokens=False).ids))

    def test_the_default_can_be_planted_and_begins_as_english_does(self):
        language, speech = self.tokenizers()
        ids = language.encode(presets.REPLIES["2.6"])
        self.assertEqual(len(presets.REPLIES["2.6"].split()), 23)
        self.assertEqual(len(set(ids)), len(ids))
        self.assertEqual(reply.describe_start(language, speech, ids),
                         "the first 9 are 10 tokens of the speech model, which begins with 10")

    def test_each_state_answers_with_the_next_token_by_far(self):
        width, ids = 64, (151691, 40, 500, 151692, 151645)
        rules = weights.Rules(presets.config("2.6-small", {}, {}), "never", ids)
        shape = (151700, width)
        head, table = (np.concatenate([weights.generate(1, name, shape, "F32", rules, n) for n in range(3)]).reshape(shape)
                       for name in (weights.HEAD, weights.EMBEDDING))
        state = table[list(ids[:-1])]
        self.assertGreater(np.abs(state).mean(), 3 * np.abs(table[1000:1010]).mean())
        logits = state / np.sqrt((state ** 2).mean(1, keepdims=True)) @ head.T
        self.assertEqual(logits.argmax(1).tolist(), list(ids[1:]))
        self.assertGreater(np.min(np.diff(np.sort(logits, 1)[:, -2:])), 20)

    def test_words_that_come_twice(self):
        run = checkpoint("make", "--preset", "2.6-small", "--reply", "by the sea and the sun", self.folder / "twice")
        self.assertEqual(run.returncode, 1)
        self.assertIn("has the token ' the' twice", run.stderr)


class Engine(unittest.TestCase):
    def ask(self, folder: pathlib.Path, *arguments: str) -> dict:
        ask = os.environ.get("ASK")
        if not ask or not os.access(ask, os.X_OK):
            self.skipTest("minicpmo-ask is not built")
        run = subprocess.run([ask, "--model", folder, "--device", "cpu", "--json", *arguments], capture_output=True, text=True,
                             timeout=120)
        self.assertEqual(run.returncode, 0, run.stderr)
        return json.loads(run.stdout)

    def test_the_engine_says_the_planted_reply(self):
        text = "I'm sure my favorite color is blue."
        with tempfile.TemporaryDirectory() as keep:
            folder = made(pathlib.Path(keep) / "model", "--preset", "2.6-small", "--reply", text)
            for precision in ("float32", "bfloat16"):
                answers = self.ask(folder, "--precision", precision, "--max-codes", "50", "--text", "hi", "--text", "Why?",
                                   str(SOURCE / "tools/tiny/samples/q01_cap.wav"))
                self.assertEqual([a["text"] for a in answers], [text] * 3)
                self.assertEqual([round(a["audio_seconds"] * 24000) for a in answers], [50 * 512] * 3)

    def test_the_engine_answers_with_a_made_checkpoint(self):
        with tempfile.TemporaryDirectory() as keep:
            folder = made(pathlib.Path(keep) / "model", "--preset", "2.6-small", "--endings", "soon")
            for precision in ("float32", "bfloat16"):
                answer = self.ask(folder, "--precision", precision, "--text", "hi")[0]
                self.assertGreater(answer["ttfb_ms"], 0)
                self.assertNotEqual(answer["text"].strip(), "")


class Convert(Folder):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        try:
            import torch
        except ImportError:
            cls.torch = None
            return
        cls.torch = torch
        generator = torch.Generator().manual_seed(1)
        config = json.loads((cls.good / "config.json").read_text())
        cls.state = {n: torch.randn(s, generator=generator) for n, s in layout.vocos_tensors(config).items()}

    def setUp(self):
        if self.torch is None:
            self.skipTest("needs the packages of tools/requirements-reference.txt")
        super().setUp()

    def convert(self, state: object, *options: str) -> subprocess.CompletedProcess:
        self.torch.save(state, self.folder / "assets/Vocos.pt")
        return checkpoint("convert", *options, self.folder)

    def assert_refused(self, state: object, text: str) -> None:
        before = (self.folder / "assets/Vocos.safetensors").read_bytes()
        run = self.convert(state, "--force")
        self.assertEqual(run.returncode, 1, run.stdout)
        self.assertIn(text, run.stderr)
        self.assertEqual((self.folder / "assets/Vocos.safetensors").read_bytes(), before)

    def test_converts_exactly(self):
        (self.folder / "assets/Vocos.safetensors").unlink()
        run = self.convert(self.state)
        self.assertEqual(run.returncode, 0, run.stderr)
        header, data = header_of(self.folder / "assets/Vocos.safetensors")
        for name, value in self.state.items():
            begin, end = header[name]["data_offsets"]
            self.assertEqual(data[begin:end], value.numpy().tobytes(), name)
        self.assertEqual(checkpoint("check", "--quiet", self.folder).returncode, 0)

    def test_keeps_what_is_there(self):
        self.assertIn("--force makes it anew", self.convert(self.state).stderr)

    def test_code_is_not_run(self):
        target = self.folder / "code-was-run"

        class Evil:
            def __reduce__(self):
                return os.system, (f"touch {target}",)
        self.assert_refused(self.state | {"x": Evil()}, "unsupported GLOBAL posix.system")
        self.assertFalse(target.exists())

    def test_another_model(self):
        self.assert_refused({n: v for n, v in self.state.items() if n != "head.out.bias"}, "missing: head.out.bias")
        self.assert_refused(self.state | {"more": self.torch.zeros(1)}, "unknown: more")
        self.assert_refused(self.state | {"head.out.bias": self.torch.zeros(3)}, "head.out.bias is [3], not [1026]")
        self.assert_refused(self.state | {"head.out.bias": "x"}, "is a str, not a tensor")
        self.assert_refused([1, 2], "holds a list")

    def test_values_that_are_not_finite(self):
        self.assert_refused(self.state | {"head.out.bias": self.state["head.out.bias"] / 0}, "not finite")


if __name__ == "__main__":
    tap.main()
