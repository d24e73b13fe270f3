// The character classes of BertNormalizer and BertPreTokenizer, as the crate `unicode_categories`
// that Hugging Face's tokenizers use has them (Unicode 8), which GLib, being newer, does not.
#pragma once

#include "engine/unicode_text.h"

namespace minicpmo {

bool is_bert_removed(char32_t c);      // clean_text drops it
bool is_nonspacing_mark(char32_t c);   // strip_accents drops it, after decomposition
bool is_bert_punctuation(char32_t c);  // is a word of its own

}  // namespace minicpmo
