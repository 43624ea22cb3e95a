import type { Clock } from '../lib/clock.ts';
import type { HttpClient } from '../lib/http-client.ts';
import type { Style, Terminal } from '../lib/terminal.ts';
import { type Column, formatTable } from '../lib/text.ts';
import { dataDirectory, findServer } from './find-server.ts';

/** The process as a Terminal. What needs time to load is loaded when a command first needs it. */
export interface GlobalOptions {
  readonly data?: string;
  readonly server?: string;
  readonly json?: boolean;
}

const codes: Readonly<Record<Style, string>> = {
  bold: '1',
  dim: '2',
  red: '31',
  green: '32',
  yellow: '33',
  cyan: '36',
};

/** What a command reads and writes: the process's own, or what a test puts in its place. */
export interface Surroundings {
  readonly stdout: Screen;
  readonly stderr: Screen;
  readonly stdin: NodeJS.ReadableStream & { readonly isTTY?: boolean };
  readonly environment: NodeJS.ProcessEnv;
}

interface Screen {
  write(text: string): unknown;
  readonly isTTY?: boolean;
  readonly columns?: number;
  readonly rows?: number;
}

export class ProcessTerminal implements Terminal {
  readonly clock: Clock;
  readonly interactive: boolean;
  readonly surroundings: Surroundings;
  readonly #capable: boolean;
  readonly #colours: boolean;
  #options: GlobalOptions = {};
  #client: HttpClient | undefined;

  constructor(clock: Clock, surroundings: Surroundings) {
    this.clock = clock;
    this.surroundings = surroundings;
    const { NO_COLOR, TERM } = surroundings.environment;
    this.#capable = TERM !== undefined && TERM !== '' && TERM !== 'dumb';
    this.interactive = surroundings.stdout.isTTY === true && this.#capable;
    // no-color.org: set and not empty, whatever the value.
    this.#colours = this.#capable && (NO_COLOR === undefined || NO_COLOR === '');
  }

  /** The options that every command takes, once they are read. */
  configure(options: GlobalOptions): void {
    this.#options = options;
  }

  get json(): boolean {
    return this.#options.json === true;
  }

  get width(): number {
    const columns = this.surroundings.stdout.columns ?? 80;
    return this.interactive ? Math.max(40, Math.min(columns, 160)) : 80;
  }

  get dataDirectory(): string {
    const isRoot = process.getuid?.() === 0;
    return dataDirectory(this.#options.data, this.surroundings.environment, isRoot);
  }

  async client(): Promise<HttpClient> {
    if (this.#client !== undefined) return this.#client;
    const { httpClient } = await import('../lib/http-client.ts');
    const url = this.#options.server ?? this.#serverVariable();
    const found = await findServer(url, this.dataDirectory);
    this.#client = httpClient({ ...found, peer: 'server' });
    return this.#client;
  }

  /** `--data` on the command line outweighs ROUSE_SERVER in the environment. */
  #serverVariable(): string | undefined {
    return this.#options.data === undefined
      ? this.surroundings.environment['ROUSE_SERVER']
      : undefined;
  }

  close(): void {
    this.#client?.close();
  }

  print(line: string): void {
    this.surroundings.stdout.write(`${line}\n`);
  }

  note(line: string): void {
    this.surroundings.stderr.write(`${line}\n`);
  }

  answer(value: unknown, show: () => void): void {
    if (this.json) this.surroundings.stdout.write(`${JSON.stringify(value)}\n`);
    else show();
  }

  table(columns: readonly Column[], rows: readonly (readonly string[])[], empty: string): void {
    if (rows.length === 0) return this.print(empty);
    const [head = '', ...lines] = formatTable(columns, rows, this.width);
    this.print(this.paint('dim', head));
    for (const line of lines) this.print(line);
  }

  paint(style: Style, text: string): string {
    return this.#colours && this.interactive && text !== ''
      ? `\u001b[${codes[style]}m${text}\u001b[0m`
      : text;
  }

  /** The same for stderr, which may be a terminal when stdout is not. */
  paintNote(style: Style, text: string): string {
    const { stderr } = this.surroundings;
    if (!this.#colours || stderr.isTTY !== true) return text;
    return `\u001b[${codes[style]}m${text}\u001b[0m`;
  }

  /** Lines that replace the ones before: the cursor goes up (CUU) and all below is erased (ED). */
  live(): { show(lines: readonly string[]): void; end(): void } {
    let height = 0;
    let before = '';
    return {
      show: (lines) => {
        const rows = this.surroundings.stdout.rows ?? 24;
        // What has scrolled out of the window cannot be reached again: show the end.
        const shown = lines.slice(-(rows - 1));
        const text = shown.join('\n');
        if (text === before) return;
        before = text;
        const up = height > 0 ? `\u001b[${height}A` : '';
        this.surroundings.stdout.write(`${up}\r\u001b[0J${text}\n`);
        height = shown.length;
      },
      end: () => {
        before = '';
        height = 0;
      },
    };
  }

  onInterrupt(handler: () => void): () => void {
    process.on('SIGINT', handler);
    return () => void process.off('SIGINT', handler);
  }

  async ask(question: string, signal?: AbortSignal): Promise<boolean> {
    const { stdin } = this.surroundings;
    if (stdin.isTTY !== true) return false;
    const { createInterface } = await import('node:readline/promises');
    const lines = createInterface({ input: stdin, output: process.stderr });
    const interrupted = new AbortController();
    // A second Ctrl-C at the question means yes: whoever presses it twice wants out.
    let answer = 'yes';
    lines.once('SIGINT', () => interrupted.abort());
    const signals = [interrupted.signal, ...(signal === undefined ? [] : [signal])];
    try {
      answer = await lines.question(question, { signal: AbortSignal.any(signals) });
    } catch {
      this.surroundings.stderr.write('\n');
      if (signal?.aborted === true) answer = 'no';
    } finally {
      lines.close();
    }
    return /^y(es)?$/i.test(answer.trim());
  }
}
