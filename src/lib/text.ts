import { RouseError } from '../errors.ts';

/**
 * Text for people: byte sizes, durations, rates, names that were meant, tables that fit a terminal.
 * Widths are terminal cells: a Chinese character is two, a combining accent none.
 */
const byteUnits = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB', 'EiB'] as const;

/** `1536` -> `1.5 KiB`; three significant digits at most. */
export function formatBytes(count: number): string {
  if (!Number.isFinite(count)) return '?';
  let value = Math.abs(count);
  let unit = 0;
  // 999.5 would be shown as 1000, four digits: the next unit is shorter.
  while (value >= 999.5 && unit < byteUnits.length - 1) {
    value /= 1024;
    unit += 1;
  }
  const digits = unit === 0 || value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2;
  const text = digits === 0 ? value.toFixed(0) : trimZeros(value.toFixed(digits));
  return `${count < 0 ? '-' : ''}${text} ${byteUnits[unit]}`;
}

function trimZeros(text: string): string {
  return text.replace(/\.?0+$/, '');
}

export function formatRate(bytesPerSecond: number): string {
  return `${formatBytes(bytesPerSecond)}/s`;
}

const multipliers: Readonly<Record<string, number>> = {
  '': 1,
  k: 1024,
  m: 1024 ** 2,
  g: 1024 ** 3,
  t: 1024 ** 4,
  p: 1024 ** 5,
};

/** `4G`, `512 MiB`, `1.5t`, `4096`; units are binary. Throws `bad-request`. */
export function parseBytes(text: string): number {
  const match = /^\s*(\d+(?:\.\d+)?)\s*([kmgtp]?)(?:i?b)?\s*$/i.exec(text);
  const factor = match?.[2] === undefined ? undefined : multipliers[match[2].toLowerCase()];
  const bytes = Math.round(Number(match?.[1]) * (factor ?? Number.NaN));
  if (!Number.isSafeInteger(bytes)) {
    throw new RouseError('bad-request', `"${text}" is not a size`, {
      advice: 'Write a number and a unit, such as 512M, 4G or 1.5T.',
    });
  }
  return bytes;
}

const durationUnits: readonly (readonly [string, number])[] = [
  ['d', 86_400_000],
  ['h', 3_600_000],
  ['min', 60_000],
  ['s', 1_000],
];

/** The two largest units: `2 d 3 h`, `4 min 10 s`, `1.25 s`, `340 ms`. */
export function formatDuration(milliseconds: number): string {
  if (!Number.isFinite(milliseconds)) return '?';
  if (milliseconds < 0) return `-${formatDuration(-milliseconds)}`;
  if (milliseconds < 999.5) return `${Math.round(milliseconds)} ms`;
  if (milliseconds < 10_000) return `${trimZeros((milliseconds / 1000).toFixed(2))} s`;
  if (milliseconds < 59_950) return `${trimZeros((milliseconds / 1000).toFixed(1))} s`;
  // Round to the smaller of the two units first, so that 59 min 59.9 s becomes 1 h.
  const smallest = milliseconds < 3_600_000 ? 1000 : milliseconds < 86_400_000 ? 60_000 : 3_600_000;
  let rest = Math.round(milliseconds / smallest) * smallest;
  const parts: string[] = [];
  for (const [unit, size] of durationUnits) {
    const count = Math.floor(rest / size);
    rest -= count * size;
    if (count > 0) parts.push(`${count} ${unit}`);
    if (parts.length === 2) break;
  }
  return parts.join(' ');
}

/** `1 pack`, `2 packs`. */
export function plural(count: number, word: string): string {
  return `${count} ${count === 1 ? word : word.replace(/y$/, 'ie') + 's'}`;
}

/** The word as a shell reads it back, for commands that people copy. */
export function shellWord(text: string): string {
  return /^[\w@%+=:,./~-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

/** Edits (insert, delete, replace, swap neighbours) between two words; case does not count. */
export function distance(a: string, b: string): number {
  const from = [...a.toLowerCase()];
  const to = [...b.toLowerCase()];
  let before: number[] = [];
  let last = Array.from({ length: to.length + 1 }, (_, index) => index);
  for (let i = 1; i <= from.length; i += 1) {
    const row = [i];
    for (let j = 1; j <= to.length; j += 1) {
      const same = from[i - 1] === to[j - 1] ? 0 : 1;
      let best = Math.min((row[j - 1] ?? 0) + 1, (last[j] ?? 0) + 1, (last[j - 1] ?? 0) + same);
      if (i > 1 && j > 1 && from[i - 1] === to[j - 2] && from[i - 2] === to[j - 1]) {
        best = Math.min(best, (before[j - 2] ?? 0) + 1);
      }
      row.push(best);
    }
    before = last;
    last = row;
  }
  return last[to.length] ?? 0;
}

/** At most `max` of the words that `word` may have meant, nearest first. */
export function nearest(word: string, words: Iterable<string>, max = 3): readonly string[] {
  const lower = word.toLowerCase();
  const scored: { word: string; score: number }[] = [];
  for (const candidate of new Set(words)) {
    const other = candidate.toLowerCase();
    const edits = distance(word.slice(0, 255), candidate.slice(0, 255));
    const part = lower.length >= 2 && (other.includes(lower) || lower.includes(other));
    // A third of the letters may be wrong, two in short words; or one is a part of the other.
    const allowed = Math.max(2, Math.ceil(Math.max(lower.length, other.length) / 3));
    if (edits <= allowed && edits < Math.max(lower.length, other.length)) {
      scored.push({ word: candidate, score: edits });
    } else if (part) {
      scored.push({ word: candidate, score: allowed + 1 });
    }
  }
  scored.sort((a, b) => a.score - b.score || (a.word < b.word ? -1 : 1));
  return scored.slice(0, max).map((entry) => entry.word);
}

/** "No machine is named wbe01" with the nearest names, or with all when there are few. */
export function unknownName(
  what: string,
  word: string,
  names: Iterable<string>,
  listedBy?: string,
): RouseError {
  const all = [...new Set(names)].filter((name) => name !== '');
  const near = nearest(word, all);
  const advice =
    near.length > 0
      ? `Did you mean ${joinOr(near)}?`
      : all.length === 0
        ? `There is no ${what} yet.`
        : all.length <= 5
          ? `There ${all.length === 1 ? 'is' : 'are'}: ${all.join(', ')}.`
          : `There are ${all.length}${listedBy === undefined ? '' : `; list them: ${listedBy}`}.`;
  return new RouseError('not-found', `no ${what} is called "${word}"`, {
    advice,
    details: { what, word, nearest: near },
  });
}

export function joinOr(words: readonly string[]): string {
  if (words.length < 2) return words.join('');
  return `${words.slice(0, -1).join(', ')} or ${words.at(-1)}`;
}

/**
 * The one item that `word` names: by its id, by its name, or by an unambiguous beginning of its id
 * (four characters or more). Throws `not-found` with the nearest names, and `bad-request` when
 * several bear that name.
 */
export function pick<T extends { readonly id: string; readonly name: string }>(
  what: string,
  word: string,
  items: readonly T[],
  listedBy?: string,
): T {
  const exact = items.find((item) => item.id === word);
  if (exact !== undefined) return exact;
  const named = items.filter((item) => item.name === word);
  const found =
    named.length > 0 || word.length < 4 ? named : items.filter((item) => item.id.startsWith(word));
  const [only] = found;
  if (only !== undefined && found.length === 1) return only;
  if (found.length > 1) {
    const ids = found.map((item) => item.id);
    const advice = `Name one by its id: ${joinOr(ids.slice(0, 5))}.`;
    const message = `"${word}" is ${plural(found.length, what)}`;
    throw new RouseError('bad-request', message, { advice, details: { what, word, ids } });
  }
  throw unknownName(
    what,
    word,
    items.map((item) => item.name),
    listedBy,
  );
}

const segmenter = new Intl.Segmenter('en', { granularity: 'grapheme' });
const wide =
  /^(?:\p{Script=Han}|\p{Script=Hiragana}|\p{Script=Katakana}|\p{Script=Hangul}|\p{Emoji_Presentation}|[\u3000-\u303f\uff01-\uff60\uffe0-\uffe6])/u;
const invisible = /^[\p{Mn}\p{Me}\p{Cf}\p{Cc}]+$/u;
// oxlint-disable-next-line no-control-regex -- escape sequences that colour are control characters
const colours = /\u001b\[[0-9;]*m/g;

function graphemeWidth(grapheme: string): number {
  if (invisible.test(grapheme)) return 0;
  return wide.test(grapheme) || grapheme.includes('\ufe0f') ? 2 : 1;
}

/** Terminal cells that the text takes; colours take none. */
export function textWidth(text: string): number {
  const plain = text.replace(colours, '');
  if (/^[\x20-\x7e]*$/.test(plain)) return plain.length;
  let width = 0;
  for (const { segment } of segmenter.segment(plain)) width += graphemeWidth(segment);
  return width;
}

/** Control characters (escape sequences, newlines) of foreign names do not reach a terminal. */
export function printable(text: string): string {
  // oxlint-disable-next-line no-control-regex -- these are what is replaced
  return text.replace(/[\u0000-\u001f\u007f-\u009f\u2028\u2029\u202a-\u202e\u2066-\u2069]/g, '?');
}

/** At most `width` cells; what is left out becomes one `…`, in the middle or at the end. */
export function fitText(text: string, width: number, where: 'middle' | 'end' = 'end'): string {
  if (textWidth(text) <= width) return text;
  if (width <= 1) return width === 1 ? '…' : '';
  const graphemes = [...segmenter.segment(text)].map((part) => part.segment);
  const headWidth = where === 'end' ? width - 1 : Math.ceil((width - 1) / 2);
  const head = takeCells(graphemes, headWidth);
  if (where === 'end') return `${head}…`;
  const tail = takeCells(graphemes.toReversed(), width - 1 - headWidth, true);
  return `${head}…${tail}`;
}

function takeCells(graphemes: readonly string[], width: number, backwards = false): string {
  let cells = 0;
  let text = '';
  for (const grapheme of graphemes) {
    cells += graphemeWidth(grapheme);
    if (cells > width) break;
    text = backwards ? grapheme + text : text + grapheme;
  }
  return text;
}

export function padText(text: string, width: number, align: 'left' | 'right' = 'left'): string {
  const padding = ' '.repeat(Math.max(0, width - textWidth(text)));
  return align === 'left' ? text + padding : padding + text;
}

export interface Column {
  readonly title: string;
  readonly align?: 'left' | 'right';
  /** Never narrower than this when space is short; default 4. */
  readonly minWidth?: number;
  /** Gives way first when space is short; the others keep their width as long as possible. */
  readonly flexible?: boolean;
  /** Paths and ids are cut in the middle: both ends say something. */
  readonly cut?: 'middle' | 'end';
}

/** Lines of a table that is at most `width` cells wide; the last column is not padded. */
export function formatTable(
  columns: readonly Column[],
  rows: readonly (readonly string[])[],
  width = 80,
): string[] {
  const cells = rows.map((row) => columns.map((_, index) => printable(row[index] ?? '')));
  const wanted = columns.map((column, index) =>
    Math.max(textWidth(column.title), ...cells.map((row) => textWidth(row[index] ?? ''))),
  );
  const widths = shrinkColumns(columns, wanted, width - 2 * (columns.length - 1));
  const line = (texts: readonly string[]) =>
    columns
      .map((column, index) => {
        const cut = fitText(texts[index] ?? '', widths[index] ?? 0, column.cut ?? 'end');
        return padText(cut, widths[index] ?? 0, column.align ?? 'left');
      })
      .join('  ')
      .trimEnd();
  return [line(columns.map((column) => column.title.toUpperCase())), ...cells.map(line)];
}

function shrinkColumns(columns: readonly Column[], wanted: number[], space: number): number[] {
  const widths = [...wanted];
  const excess = () => widths.reduce((sum, width) => sum + width, 0) - space;
  for (const flexibleOnly of [true, false]) {
    while (excess() > 0) {
      let widest = -1;
      columns.forEach((column, index) => {
        if (flexibleOnly && column.flexible !== true) return;
        const width = widths[index] ?? 0;
        const least = Math.max(column.minWidth ?? 4, 1);
        if (width > least && width > (widths[widest] ?? 0)) widest = index;
      });
      if (widest < 0) break;
      widths[widest] = (widths[widest] ?? 0) - 1;
    }
  }
  return widths;
}

/** Lines of at most `width` cells, broken at spaces; what goes on is indented by two. */
export function wrapText(text: string, width: number): readonly string[] {
  const lines: string[] = [];
  for (const word of printable(text).split(' ')) {
    const last = lines.at(-1);
    if (last !== undefined && textWidth(`${last} ${word}`) <= width) {
      lines[lines.length - 1] = `${last} ${word}`;
    } else {
      lines.push(last === undefined ? word : `  ${word}`);
    }
  }
  return lines;
}
