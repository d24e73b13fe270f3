"""Writes what PyPI's `tokenizers` makes of many random and hostile strings, for oracle_test.cpp to compare with.

    make_oracle.py OUT_DIR MODEL_DIR [--count N] [--seed S]

OUT_DIR gets, for each of the vocabularies
    tiny_bpe, tiny_wordpiece    of the small checkpoint in MODEL_DIR
    big_bpe, big_wordpiece      trained here on random multilingual text; with lstrip, rstrip and normalised tokens
    odd_bpe                     no normaliser, merges as strings, an unknown token, bytes missing
    pairs_bpe                   any two bytes merge, so that ids show each split
    cased_wordpiece             nothing cleaned, lower-cased or stripped; decoder without clean-up
a NAME.json (tokenizer) and a NAME.bin of little-endian records: u32 text bytes, the text, u32 number of ids, i32 ids,
u32 bytes, decode(ids) -- and the same again for decode() of random ids, with no text: text bytes = 0xFFFFFFFF.

Exit status 77: Python has no `tokenizers` of a version whose results these are.
"""
import argparse
import json
import os
import random
import struct
import sys
import unicodedata

VERSION = "0.23."
QWEN_SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
              r"|\s*[\r\n]+|\s+(?!\S)|\s+")
NO_TEXT = 0xFFFFFFFF

try:
    import tokenizers
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
except ImportError:
    print("no python package 'tokenizers'")
    sys.exit(77)
if not tokenizers.__version__.startswith(VERSION):
    print("tokenizers", tokenizers.__version__, "is not", VERSION + "x")
    sys.exit(77)

ENGLISH = ("the and of what is capital seven plus nine sixteen flamingo spelled don't we've I'm you'll he'd "
           "it's they're naïve café résumé Zürich façade coöperate HELLO World iPhone C++ 3.14 1,000 2026").split()
CHINESE = "的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会可主发年动同工也能下过子说产种面而方后多"
ARABIC = "اأإآبتثجحخدذرزسشصضطظعغفقكلمنهويىةؤئءًٌٍَُِّْ"
HANGUL = "가각간갇갈안녕하세요한국어" + "".join(map(chr, range(0x1100, 0x1113))) + "".join(map(chr, range(0x1161, 0x1176)))
OTHERS = "हिन्दीதமிழ்ไทยภาษाελληνικάΣσςрусскийעבריתქართულიՀայերենབོད་ཡིགမြန်မာភាសាខ្មែរ日本語ひらがなカタカナｶﾞ"
EMOJI = ["👨‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇩🇪", "❤️", "☃", "🧑🏿‍🚀", "1️⃣", "😀"]
SPACES = [" ", "  ", "\t", "\n", "\r\n", "\r", "\x0b", "\x0c", "\x1c", "\x85", "\xa0", "\u1680", "\u180e", "\u2003", "\u200b",
          "\u2028", "\u2029", "\u202f", "\u205f", "\u3000", "\ufeff", "   \n  ", "\n\n\n"]
CONTROLS = [chr(c) for c in list(range(32)) + list(range(127, 160))] + ["\ufffd", "\uffff", "\U0010ffff", "\ue000", "\xad"]
MARKS = [chr(c) for c in range(0x300, 0x370)] + list("\u0483\u0591\u05b0\u064b\u0653\u093c\u094d\u09be\u0bd7\u0dca\u0e38\u0f71\u3099\u309a\u1dfa\u1ac0\u0898\U00011938\U00011930\U00011935\U0001e08f")
CASES = ["'s", "'S", "'ſ", "'LL", "'lL", "'re", "'T", "’s", "ſ", "K", "Å", "İ", "ı", "ß", "ẞ", "ﬁ", "ŉ", "ǅ", "ΑΣ", "Ⅷ", "Ⓐ"]
WORDPIECE_CASES = [" .", " ' ", " n't", " 'm", " do not", "##ing", "[", "]", "a" * 99, "b" * 100, "c" * 101, "é" * 100, "é" * 101]


def tables(model_dir):
    bpe = Tokenizer.from_file(os.path.join(model_dir, "tokenizer.json"))
    wordpiece = Tokenizer.from_file(os.path.join(model_dir, "assets/chattts_tokenizer/tokenizer.json"))
    return bpe, wordpiece


def any_assigned(rng):
    while True:
        c = rng.choice([rng.randrange(0x800), rng.randrange(0x3000), rng.randrange(0x10000), rng.randrange(0x20000),
                        rng.randrange(0x110000)])
        if not 0xD800 <= c < 0xE000:
            return chr(c)


class Strings:
    def __init__(self, seed, special):
        self.rng = random.Random(seed)
        self.special = special

    def piece(self):
        rng = self.rng
        kind = rng.randrange(18)
        if kind < 4:
            return rng.choice(["", " "]) + rng.choice(ENGLISH)
        if kind == 4:
            return "".join(rng.choices(CHINESE, k=rng.randint(1, 8)))
        if kind == 5:
            return "".join(rng.choices(ARABIC, k=rng.randint(1, 8)))
        if kind == 6:
            return "".join(rng.choices(HANGUL + OTHERS, k=rng.randint(1, 8)))
        if kind == 7:
            return rng.choice(EMOJI)
        if kind == 8:
            return rng.choice(SPACES) * rng.choice([1, 1, 1, 2, 7])
        if kind == 9:
            return rng.choice(CONTROLS)
        if kind == 10:
            return rng.choice("aeoAEOnнयకか가ᄀ\u0928\u1025") + "".join(rng.choices(MARKS, k=rng.randint(1, 5)))
        if kind == 11:
            return str(rng.randrange(10 ** rng.randint(1, 9)))
        if kind == 12:
            return "".join(rng.choices("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~。，、？！《》“”—…¿¡", k=rng.randint(1, 4)))
        if kind == 13:
            return rng.choice(self.special)
        if kind == 14:
            token = rng.choice(self.special)
            cut = rng.randrange(len(token) + 1)
            return rng.choice([token[:cut], token[cut:], token.upper(), token[:cut] + " " + token[cut:], token + token[:cut]])
        if kind == 15:
            return rng.choice(CASES + WORDPIECE_CASES)
        if kind == 16:
            return "".join(any_assigned(rng) for _ in range(rng.randint(1, 4)))
        return rng.choice("aZ .'é中\u0301\x00\n9") * rng.choice([1, 2, 3, 10, 50])

    def text(self):
        return "".join(self.piece() for _ in range(self.rng.choice([1, 1, 2, 3, 5, 8, 13, 30])))


def blocks():
    """Every code point, assigned or not: alone in a text, and 128 in a row; and after letters and marks."""
    points = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    for c in points:
        if c < 0x30000 or c % 256 < 2 or 0xE0000 <= c < 0xE0200:
            yield chr(c)
            yield "a " + chr(c) + chr(c) + "b"
    for c in points:
        if c < 0x20000 and unicodedata.category(chr(c)) != "Co":
            yield "a\u0345\u05b0" + chr(c) + "\u0334\u0301" + " x" + chr(c).upper() + "'" + chr(c).lower()
    for i in range(0, len(points), 128):
        yield "".join(map(chr, points[i:i + 128]))
    # what composes
    for c in points:
        parts = unicodedata.normalize("NFD", chr(c))
        if len(parts) > 1 and not (0xAC00 <= c < 0xD7A4 and c % 7):
            yield parts
            yield parts[0] + "\u0334" + parts[1:] + parts[1:]


def fixed():
    yield from ["", " ", "\x00", "a\x00b\u0301\x00e\u0301", "  a", "a  ", " \n \n a", "\r\n\r\n", "\n a"]
    for c in ["a", " ", "\n", "é", "中", "\u0301", "!", "9", "\x00", "😀", "ab", "a b "]:
        for n in (97, 100, 101, 1000, 20000):
            yield c * n
    yield "\u0301\u0323" * 5000
    yield "a" + " " * 30000 + "b"


def big_text(seed):
    strings = Strings(seed, [""])
    return [strings.text() for _ in range(6000)]


def big_bpe():
    t = Tokenizer(models.BPE())
    t.normalizer = normalizers.NFC()
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(QWEN_SPLIT), "isolated"),
                                               pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(big_text(5), trainers.BpeTrainer(
        vocab_size=12000, show_progress=False, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    t.add_special_tokens(["<|im_start|>", "<|im_end|>", "<|im", "<|im_start|>x", "语音", "é́"])
    t.add_tokens([AddedToken("<tool_call>", normalized=False), AddedToken("e\u0301q", normalized=True),
                  AddedToken("<left>", lstrip=True), AddedToken("<right>", rstrip=True, normalized=False),
                  AddedToken("<both>", lstrip=True, rstrip=True, normalized=False), AddedToken("two words")])
    return t


def odd_bpe():
    t = big_bpe()
    j = json.loads(t.to_str())
    j["normalizer"] = None
    model = j["model"]
    lost = {"a", "é", "Ġ", "Ċ", "ä"}  # letters of the byte alphabet
    model["vocab"] = {k: v for k, v in model["vocab"].items() if not lost & set(k)}
    model["vocab"] = {k: i for i, k in enumerate(sorted(model["vocab"], key=model["vocab"].get))}
    merges = [m if isinstance(m, list) else m.split(" ") for m in model["merges"]]
    merges = [" ".join(m) for m in merges if all(x in model["vocab"] for x in [m[0], m[1], m[0] + m[1]])]
    # Out of order, with a pair listed twice: merges that undercut those which made their parts.
    random.Random(1).shuffle(merges)
    model["merges"] = ["#version: 0.2"] + merges + merges[:50]
    model["unk_token"], model["fuse_unk"] = "!", True
    j["added_tokens"] = []
    return Tokenizer.from_str(json.dumps(j))


def pairs_bpe():
    """Merges any two bytes, so that the ids show where the text was split."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [(a, b) for a in alphabet for b in alphabet]
    tokens = alphabet + [a + b for a, b in merges]
    t = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    t.normalizer = normalizers.NFC()
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(QWEN_SPLIT), "isolated"),
                                               pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.decoder = decoders.ByteLevel()
    return t


def wordpiece(normalizer, decoder, lower):
    t = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=100))
    t.normalizer = normalizer
    t.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    t.decoder = decoder
    t.train_from_iterator(big_text(6), trainers.WordPieceTrainer(
        vocab_size=9000, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[Stts]"], show_progress=False,
        limit_alphabet=3000, continuing_subword_prefix="##"))
    t.add_special_tokens(["[spk_emb]", "[Ptts]", "[uv_break]"])
    t.add_tokens([AddedToken("[Laugh]", normalized=True), AddedToken("Über", normalized=True, lstrip=True),
                  AddedToken("don't", normalized=False, rstrip=True)])
    return t


def vocabularies(model_dir):
    tiny_bpe, tiny_wordpiece = tables(model_dir)
    yield "tiny_bpe", tiny_bpe
    yield "tiny_wordpiece", tiny_wordpiece
    yield "big_bpe", big_bpe()
    yield "odd_bpe", odd_bpe()
    yield "pairs_bpe", pairs_bpe()
    yield "big_wordpiece", wordpiece(normalizers.BertNormalizer(), decoders.WordPiece(), True)
    yield "cased_wordpiece", wordpiece(
        normalizers.BertNormalizer(clean_text=False, handle_chinese_chars=True, strip_accents=False, lowercase=False),
        decoders.WordPiece(cleanup=False), False)


def write_record(out, text, ids, decoded):
    if text is None:
        out.write(struct.pack("<I", NO_TEXT))
    else:
        out.write(struct.pack("<I", len(text)) + text)
    out.write(struct.pack("<I%di" % len(ids), len(ids), *ids))
    decoded = decoded.encode()
    out.write(struct.pack("<I", len(decoded)) + decoded)


def hostile_bytes(rng, text):
    """Text with bytes broken, which counts as what Python's errors="replace" makes of it (as Rust's lossy does)."""
    data = bytearray(text.encode())
    for _ in range(rng.randint(1, 4)):
        if data:
            at = rng.randrange(len(data))
            if rng.random() < 0.5:
                data[at] = rng.randrange(128, 256)
            else:
                del data[at]
    return bytes(data)


def write_oracle(path, t, seed, count):
    rng = random.Random(seed)
    special = [a.content for a in t.get_added_tokens_decoder().values()] or ["<x>"]
    strings = Strings(seed, special)
    texts = list(fixed()) + list(blocks()) if count else []
    with open(path, "wb") as out:
        def one(data):
            ids = t.encode(data.decode(errors="replace"), add_special_tokens=False).ids
            write_record(out, data, ids, t.decode(ids, skip_special_tokens=False))
        for text in texts:
            one(text.encode())
        for i in range(count):
            text = strings.text()
            one(hostile_bytes(rng, text) if i % 8 == 0 else text.encode())
        size = t.get_vocab_size()
        for _ in range(max(count // 10, 100)):
            ids = [rng.choice([rng.randrange(size), rng.randrange(min(size, 300)), size - 1, size + rng.randrange(9)])
                   for _ in range(rng.randint(1, 12))]
            write_record(out, None, ids, t.decode(ids, skip_special_tokens=False))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out_dir")
    parser.add_argument("model_dir")
    parser.add_argument("--count", type=int, default=12000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    os.makedirs(args.out_dir, exist_ok=True)
    for name, t in vocabularies(args.model_dir):
        path = os.path.join(args.out_dir, name + ".json")
        if name == "odd_bpe":  # as strings, which t.save() would not write
            save_legacy(t, path)
        else:
            t.save(path)
        write_oracle(os.path.join(args.out_dir, name + ".bin"), t, args.seed, args.count)


def save_legacy(t, path):
    j = json.loads(t.to_str())
    j["model"]["merges"] = [m if isinstance(m, str) else " ".join(m) for m in j["model"]["merges"]]
    with open(path, "w") as out:
        json.dump(j, out)


if __name__ == "__main__":
    main()
