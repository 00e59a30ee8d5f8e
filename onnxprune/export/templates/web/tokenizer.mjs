// The tokenizer of a tokenizer.json: WordPiece, byte-level BPE and Unigram, as Hugging Face's `tokenizers` runs them.
// What it does not know it refuses: a wrong id is worse than none.

const SPACE = /\p{White_Space}/u;
const PUNCTUATION = /[!-/:-@[-`{-~]|\p{P}/u;
const CHINESE = /[\u4e00-\u9fff\u3400-\u4dbf\u{20000}-\u{2a6df}\u{2a700}-\u{2b73f}\u{2b740}-\u{2b81f}\u{2b920}-\u{2ceaf}\uf900-\ufaff\u{2f800}-\u{2fa1f}]/u;
const GPT2 = /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+/gu;

export class Tokenizer {
  /** `recipe`: max_length, pad_id and pad_side of preprocess.json. */
  constructor(told, recipe) {
    this.recipe = recipe;
    this.normalize = normalizer(told.normalizer);
    this.split = splitter(told.pre_tokenizer);
    this.model = MODELS[told.model.type]?.(told.model) ?? refuse("model", told.model);
    this.added = (told.added_tokens ?? []).filter((t) => t.content);
    this.ids = new Map(this.added.map((t) => [t.content, t.id]));
    this.finish = finisher(told.post_processor, (token) => this.ids.get(token) ?? this.model.id(token));
    const alternatives = this.added.map((t) => t.content).sort((a, b) => b.length - a.length).map(escape);
    this.special = alternatives.length ? new RegExp(alternatives.join("|"), "g") : null;
  }

  /** {ids, types, mask} of a text, cut at the model's length and padded to `length` if that is a number. */
  encode(text, length = null) {
    let ids = [];
    for (const [piece, id] of this.parts(text)) {
      if (id !== undefined) ids.push(id);
      else for (const word of this.split(this.normalize(piece))) ids.push(...this.model.ids(word));
    }
    const extra = this.finish([]).ids.length;
    const most = this.recipe.max_length ?? Infinity;
    if (ids.length + extra > most) ids = ids.slice(0, most - extra);
    const done = this.finish(ids);
    let mask = done.ids.map(() => 1);
    const missing = (length ?? 0) - done.ids.length;
    if (missing > 0) {
      const fill = (value) => new Array(missing).fill(value);
      const left = this.recipe.pad_side === "left";
      const pad = (column, value) => (left ? [...fill(value), ...column] : [...column, ...fill(value)]);
      return { ids: pad(done.ids, this.recipe.pad_id ?? 0), types: pad(done.types, 0), mask: pad(mask, 0) };
    }
    return { ids: done.ids, types: done.types, mask };
  }

  /** The text in pieces, between tokens that are written out in it. */
  *parts(text) {
    let at = 0;
    for (const match of this.special ? text.matchAll(this.special) : []) {
      const token = this.added.find((t) => t.content === match[0]);
      let before = text.slice(at, match.index);
      if (token.lstrip) before = before.trimEnd();
      if (before) yield [before];
      yield [match[0], token.id];
      at = match.index + match[0].length;
      while (token.rstrip && SPACE.test(text[at] ?? "")) at++;
    }
    if (at < text.length) yield [text.slice(at)];
  }
}

function refuse(what, told) {
  throw new Error(`its ${what} is ${told?.type ?? told}`);
}

const escape = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
const lower = (text) => Array.from(text, (c) => c.toLowerCase()).join(""); // letter by letter: no final sigma

// ---- normalisation

function normalizer(told) {
  if (!told) return (text) => text;
  const known = {
    Sequence: () => told.normalizers.map(normalizer).reduce((f, g) => (text) => g(f(text))),
    BertNormalizer: () => bert(told),
    Lowercase: () => lower,
    StripAccents: () => (text) => text.replace(/\p{Mn}/gu, ""),
    Strip: () => (text) => (told.strip_left && told.strip_right ? text.trim() : told.strip_left ? text.trimStart() : text.trimEnd()),
    Prepend: () => (text) => (text ? told.prepend + text : text),
    Replace: () => {
      const pattern = told.pattern.String !== undefined ? escape(told.pattern.String) : told.pattern.Regex;
      return (text) => text.replace(new RegExp(pattern, "gu"), () => told.content);
    },
  };
  for (const form of ["NFC", "NFD", "NFKC", "NFKD"]) known[form] = () => (text) => text.normalize(form);
  return (known[told.type] ?? (() => refuse("normalizer", told)))();
}

function bert(told) {
  const strip = told.strip_accents ?? told.lowercase;
  return (text) => {
    if (told.clean_text) {
      text = Array.from(text, (c) => {
        if (c === "\t" || c === "\n" || c === "\r" || SPACE.test(c)) return " ";
        return c === "\ufffd" || /\p{C}/u.test(c) ? "" : c;
      }).join("");
    }
    if (told.handle_chinese_chars) text = Array.from(text, (c) => (CHINESE.test(c) ? ` ${c} ` : c)).join("");
    if (strip) text = text.normalize("NFD").replace(/\p{Mn}/gu, "");
    return told.lowercase ? lower(text) : text;
  };
}

// ---- words

function splitter(told) {
  if (!told) return (text) => (text ? [text] : []);
  const known = {
    Sequence: () => {
      const all = told.pretokenizers.map(splitter);
      return (text) => all.reduce((words, split) => words.flatMap(split), [text]);
    },
    BertPreTokenizer: () => (text) => words(text).flatMap(punctuated),
    Whitespace: () => (text) => text.match(/[\p{L}\p{M}\p{N}\p{Pc}]+|[^\p{L}\p{M}\p{N}\p{Pc}\s]+/gu) ?? [],
    WhitespaceSplit: () => words,
    Punctuation: () => punctuated,
    Digits: () => (text) => text.match(told.individual_digits ? /\p{N}|\P{N}+/gu : /\p{N}+|\P{N}+/gu) ?? [],
    ByteLevel: () => (text) => byteLevel(text, told),
    Metaspace: () => (text) => metaspace(text, told),
  };
  return (known[told.type] ?? (() => refuse("pre-tokenizer", told)))();
}

const words = (text) => text.split(/\p{White_Space}+/u).filter(Boolean);

function punctuated(word) {
  const found = [];
  let current = "";
  for (const c of word) {
    if (PUNCTUATION.test(c)) {
      if (current) found.push(current);
      found.push(c);
      current = "";
    } else current += c;
  }
  if (current) found.push(current);
  return found;
}

const BYTES = (() => {
  const shown = [[33, 126], [161, 172], [174, 255]].flatMap(([a, b]) => Array.from({ length: b - a + 1 }, (_, i) => a + i));
  const table = new Array(256);
  let next = 256;
  for (let b = 0; b < 256; b++) table[b] = String.fromCodePoint(shown.includes(b) ? b : next++);
  return table;
})();

function byteLevel(text, told) {
  if (told.add_prefix_space && text && !text.startsWith(" ")) text = " " + text;
  const pieces = told.use_regex === false ? [text] : text.match(GPT2) ?? [];
  const encoder = new TextEncoder();
  return pieces.map((piece) => Array.from(encoder.encode(piece), (b) => BYTES[b]).join(""));
}

function metaspace(text, told) {
  const mark = told.replacement ?? "▁";
  let marked = text.replaceAll(" ", mark);
  const scheme = told.prepend_scheme ?? (told.add_prefix_space === false ? "never" : "always");
  if (scheme !== "never" && !marked.startsWith(mark)) marked = mark + marked;
  if (told.split === false) return [marked];
  return marked.match(new RegExp(`${escape(mark)}?[^${escape(mark)}]+|${escape(mark)}`, "gu")) ?? [];
}

// ---- models: a word in, ids out

const MODELS = {
  WordPiece(told) {
    const { vocab, unk_token: unknown, continuing_subword_prefix: prefix = "##", max_input_chars_per_word: most = 100 } = told;
    const ids = (word) => {
      const letters = Array.from(word);
      if (letters.length > most) return [vocab[unknown]];
      const found = [];
      for (let start = 0; start < letters.length;) {
        let end = letters.length, id;
        for (; end > start; end--) {
          id = vocab[(start ? prefix : "") + letters.slice(start, end).join("")];
          if (id !== undefined) break;
        }
        if (id === undefined) return [vocab[unknown]];
        found.push(id);
        start = end;
      }
      return found;
    };
    return { ids, id: (token) => vocab[token] };
  },

  BPE(told) {
    if (told.byte_fallback || told.continuing_subword_prefix || told.end_of_word_suffix) refuse("BPE", "of a kind this page does not know");
    const rank = new Map(told.merges.map((m, i) => [Array.isArray(m) ? m.join("\u0000") : m.replace(" ", "\u0000"), i]));
    const ids = (word) => {
      if (told.ignore_merges && told.vocab[word] !== undefined) return [told.vocab[word]];
      let parts = Array.from(word);
      for (;;) {
        let best = Infinity, at = -1;
        for (let i = 0; i + 1 < parts.length; i++) {
          const r = rank.get(parts[i] + "\u0000" + parts[i + 1]);
          if (r !== undefined && r < best) [best, at] = [r, i];
        }
        if (at < 0) break;
        parts.splice(at, 2, parts[at] + parts[at + 1]);
      }
      return parts.flatMap((p) => told.vocab[p] ?? (told.unk_token != null ? [told.vocab[told.unk_token]] : []));
    };
    return { ids, id: (token) => told.vocab[token] };
  },

  Unigram(told) {
    if (told.byte_fallback) refuse("Unigram", "one with byte fallback");
    const table = new Map(told.vocab.map(([piece, score], id) => [piece, { score, id }]));
    const longest = Math.max(...told.vocab.map(([piece]) => Array.from(piece).length));
    const worst = Math.min(...told.vocab.map(([, score]) => score)) - 10;
    const ids = (word) => {
      const letters = Array.from(word), best = [{ score: 0, from: 0, id: -1 }];
      for (let end = 1; end <= letters.length; end++) {
        for (let start = Math.max(0, end - longest); start < end; start++) {
          const piece = table.get(letters.slice(start, end).join(""));
          const step = piece ?? (end - start === 1 ? { score: worst, id: told.unk_id } : null);
          if (!step) continue;
          const score = best[start].score + step.score;
          if (!best[end] || score > best[end].score) best[end] = { score, from: start, id: step.id };
        }
      }
      const found = [];
      for (let at = letters.length; at > 0; at = best[at].from) found.unshift(best[at].id);
      return found.filter((id, i) => id !== told.unk_id || found[i - 1] !== told.unk_id); // unknown letters fuse
    };
    return { ids, id: (token) => table.get(token)?.id };
  },
};

// ---- what is put around a text

function finisher(told, id) {
  const around = (before, after) => (ids) => {
    const all = [...before.map(id), ...ids, ...after.map(id)];
    return { ids: all, types: all.map(() => 0) };
  };
  if (!told) return around([], []);
  const known = {
    ByteLevel: () => around([], []),
    BertProcessing: () => around([told.cls[0]], [told.sep[0]]),
    RobertaProcessing: () => around([told.cls[0]], [told.sep[0]]),
    TemplateProcessing: () => (ids) => {
      const found = { ids: [], types: [] };
      for (const part of told.single) {
        const own = part.Sequence ? ids : told.special_tokens[part.SpecialToken.id].ids;
        found.ids.push(...own);
        found.types.push(...own.map(() => (part.Sequence ?? part.SpecialToken).type_id));
      }
      return found;
    },
    Sequence: () => {
      const last = told.processors.filter((p) => p.type !== "ByteLevel");
      return last.length > 1 ? refuse("post-processor", told) : finisher(last[0], id);
    },
  };
  return (known[told.type] ?? (() => refuse("post-processor", told)))();
}
