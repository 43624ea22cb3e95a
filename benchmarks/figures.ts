/** Figures of several rounds, and the table and files that they end in. */
export interface Spread {
  readonly median: number;
  readonly least: number;
  readonly most: number;
}

export function spreadOf(values: readonly number[]): Spread {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = Math.floor(sorted.length / 2);
  const upper = sorted[middle] ?? Number.NaN;
  const lower = sorted[middle - 1] ?? upper;
  return {
    median: sorted.length % 2 === 1 ? upper : (lower + upper) / 2,
    least: sorted[0] ?? Number.NaN,
    most: sorted.at(-1) ?? Number.NaN,
  };
}

/** One line of a result: ours against a peer's, as a ratio of the same round, and the bar for it. */
export interface Row {
  readonly group: string;
  readonly name: string;
  readonly unit: string;
  readonly ours: Spread;
  readonly peer: string;
  readonly theirs: Spread | undefined;
  readonly ratio: Spread | undefined;
  /** Least ratio that is asked for now, and the one that is aimed at. */
  readonly now: number | undefined;
  readonly goal: number | undefined;
}

export function rowOf(spec: {
  readonly group: string;
  readonly name: string;
  readonly unit: string;
  readonly ours: readonly number[];
  readonly peer: string;
  readonly theirs: readonly number[];
  /** Of what is stored, less is better: the ratio is turned around. */
  readonly lessIsBetter?: boolean;
  readonly now?: number;
  readonly goal?: number;
}): Row {
  const ratios = spec.theirs.flatMap((theirs, round) => {
    const ours = spec.ours[round];
    if (ours === undefined || theirs === 0 || ours === 0) return [];
    return [spec.lessIsBetter === true ? theirs / ours : ours / theirs];
  });
  return {
    group: spec.group,
    name: spec.name,
    unit: spec.unit,
    ours: spreadOf(spec.ours),
    peer: spec.peer,
    theirs: spec.theirs.length === 0 ? undefined : spreadOf(spec.theirs),
    ratio: ratios.length === 0 ? undefined : spreadOf(ratios),
    now: spec.now,
    goal: spec.goal,
  };
}

function number(value: number): string {
  if (value >= 1000) return Math.round(value).toLocaleString('en');
  return value >= 100 ? value.toFixed(0) : value.toFixed(value >= 10 ? 1 : 2);
}

function spread(value: Spread | undefined): string {
  if (value === undefined) return '-';
  return `${number(value.median)} (${number(value.least)}-${number(value.most)})`;
}

export function verdict(row: Row): string {
  if (row.ratio === undefined || row.now === undefined) return '';
  if (row.goal !== undefined && row.ratio.median >= row.goal) return 'goal';
  return row.ratio.median >= row.now ? 'met' : 'MISSED';
}

/** Markdown, which is a table on a terminal as well. */
export function tableOf(rows: readonly Row[]): string {
  const head = ['what', 'unit', 'Rouse', 'peer', 'its figure', 'ratio', 'now', 'goal', ''];
  const body = rows.map((row) => [
    row.name,
    row.unit,
    spread(row.ours),
    row.peer,
    spread(row.theirs),
    spread(row.ratio),
    row.now === undefined ? '' : String(row.now),
    row.goal === undefined ? '' : String(row.goal),
    verdict(row),
  ]);
  const widths = head.map((title, column) =>
    Math.max(title.length, ...body.map((cells) => cells[column]?.length ?? 0)),
  );
  const line = (cells: readonly string[]) =>
    `| ${cells.map((cell, column) => cell.padEnd(widths[column] ?? 0)).join(' | ')} |`;
  const rule = `|${widths.map((width) => '-'.repeat(width + 2)).join('|')}|`;
  return [line(head), rule, ...body.map(line)].join('\n');
}
