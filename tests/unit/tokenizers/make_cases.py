"""Writes cases.json: ids and decoded text of chosen strings by PyPI's `tokenizers` with the small checkpoint's
vocabularies, for the tests that run without Python.   make_cases.py MODEL_DIR > cases.json"""
import json
import os
import sys

from tokenizers import Tokenizer

TEXTS = [
    "", " ", "Seven plus nine is sixteen.", "Flamingo is spelled C, A, T.", "what's THAT? I'M sure we'LL see",
    "<|im_start|>user\nUse the <reserved_53> voice.<|im_end|>\n", "<|spk_bos|><|spk|><|spk_eos|><|tts_bos|>", "<|im_start|",
    "[Stts][spk_emb]hello there[uv_break][Etts][PAD][PAD][Ptts]", "[stts] [STTS] [ Stts ]",
    "你是一个AI助手。你能接受视频，音频和文本输入。", "作为助手，你将使用这种声音风格说话。", "مَرْحَبًا بالعالم", "👨‍👩‍👧‍👦🏳️‍🌈 1️⃣", "한국어 각",
    "e\u0301 \u00e9 a\u0323\u0301 a\u0301\u0323", "\u212b \u2126 \uf900 \u0958", "a\x00b\x01\x7f\x85c", "  two  spaces \t tab\r\n\r\nnew\n\n line  ",
    "3.14 and 1,000,000", "100% (sure)! #tag @me", "x" * 100, "x" * 101, "don 't do not", "naïve CAFÉ İstanbul ß", "\ufeff\u200b\u3000\u180e",
    "\ufffd", "!", "!!!", "A\u0345\u05b0\u0334", "Ⅷ Ⓐ ǅ", "'ſ 's", "\U00031350\U0002ebf0\U0001e030",
]


def main(model_dir):
    cases = {}
    for name, path in [("bpe", "tokenizer.json"), ("wordpiece", "assets/chattts_tokenizer/tokenizer.json")]:
        t = Tokenizer.from_file(os.path.join(model_dir, path))
        cases[name] = []
        for text in TEXTS:
            ids = t.encode(text, add_special_tokens=False).ids
            cases[name].append({"text": text, "ids": ids, "decoded": t.decode(ids, skip_special_tokens=False)})
    rows = {name: ",\n".join(json.dumps(c) for c in list_) for name, list_ in cases.items()}
    print("{\n" + ",\n".join(f'"{name}": [\n{text}\n]' for name, text in rows.items()) + "\n}")


if __name__ == "__main__":
    main(sys.argv[1])
