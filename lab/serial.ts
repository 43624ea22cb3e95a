import { createConnection } from 'node:net';
import type { Socket } from 'node:net';
import * as fs from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { eventually } from './processes.ts';

/**
 * The serial ports of a guest, as its hypervisor shows them. The first one's output is appended to a
 * file, which is followed through restarts of the guest; a line counts once its end has come. The
 * second one is a unix socket that takes commands (a port of its own, because QEMU's log of a
 * socket repeats characters whenever the reader is slow).
 */
export interface SerialOptions {
  readonly logPath: string;
  /** Needed for `command` and `shell` only. */
  readonly commandSocketPath?: string;
}

export interface SerialLine {
  readonly text: string;
  /** When it was seen, by the monotonic clock of this process, in milliseconds. */
  readonly atMs: number;
}

const pollMs = 25;

export class SerialConsole {
  readonly #options: SerialOptions;
  readonly #lines: SerialLine[] = [];
  readonly #stop = new AbortController();
  readonly #done: Promise<void>;
  #partial = '';
  #offset = 0;
  #socket: Socket | undefined;
  #answers = '';
  #commands = 0;

  constructor(options: SerialOptions) {
    this.#options = options;
    this.#done = this.#follow();
  }

  /** Everything said so far, oldest first. */
  get lines(): readonly SerialLine[] {
    return this.#lines;
  }

  /** The text so far, for messages of failing tests. */
  get text(): string {
    return this.#lines.map((line) => line.text).join('\n');
  }

  /** A mark for `waitFor({ after })`: only lines that come from now on. */
  get position(): number {
    return this.#lines.length;
  }

  /** The first line from `after` on (default: the beginning) that matches, as its match. */
  async waitFor(
    pattern: RegExp,
    timeoutMs: number,
    after = 0,
  ): Promise<RegExpExecArray & { readonly atMs: number }> {
    const deadline = performance.now() + timeoutMs;
    for (let index = after; ;) {
      for (; index < this.#lines.length; index++) {
        const line = this.#lines[index];
        const match = line === undefined ? null : pattern.exec(line.text);
        if (line !== undefined && match !== null) return Object.assign(match, { atMs: line.atMs });
      }
      if (performance.now() > deadline) throw this.#missed(pattern, timeoutMs);
      await sleep(pollMs);
    }
  }

  /**
   * Runs a command of lab/guest/console in the guest and returns what it answered after `ok`;
   * rejects when it answered `failed`, or not in time.
   */
  async command(line: string, timeoutMs = 30_000): Promise<string> {
    const id = `c${process.pid}-${++this.#commands}`;
    await eventually('a guest that listens', () => this.#isListening() || undefined, timeoutMs);
    await this.#send(`${id} ${line}\n`);
    const pattern = new RegExp(`ROUSE answer ${id} (ok|failed)([^\\n]*)\\n`);
    const answer = await eventually(
      `an answer of the guest to "${line}"`,
      () => {
        if (this.#stop.signal.aborted) throw new Error(`closed before an answer to "${line}"`);
        return pattern.exec(this.#answers) ?? undefined;
      },
      timeoutMs,
    );
    this.#answers = this.#answers.slice(answer.index + answer[0].length);
    const said = (answer[2] ?? '').trim();
    if (answer[1] === 'ok') return said;
    throw new Error(`the guest's "${line.slice(0, 60)}" failed: ${said}`);
  }

  /** Runs a shell script in the guest and returns its output; rejects when it exits with an error. */
  async shell(script: string, timeoutMs = 30_000): Promise<string> {
    const decode = (said: string) => Buffer.from(said, 'base64').toString('utf8');
    const encoded = Buffer.from(script).toString('base64');
    // A terminal takes lines of up to 4095 bytes (termios(3), canonical mode).
    if (encoded.length > 4000) throw new Error('this script is too long for the serial port');
    const answer = await this.command(`run ${encoded}`, timeoutMs).catch((error: unknown) => {
      const said = /failed: (\S+)$/.exec(String(error))?.[1];
      throw said === undefined ? error : new Error(`${script}\n${shown(decode(said))}`);
    });
    return decode(answer);
  }

  async close(): Promise<void> {
    this.#stop.abort();
    this.#socket?.destroy();
    await this.#done;
  }

  /** Since its last boot, as far as that was seen. */
  #isListening(): boolean {
    const boot = this.#lines.findLastIndex((line) => /ROUSE boot /.test(line.text));
    return (
      boot < 0 || this.#lines.slice(boot).some((line) => line.text.includes('ROUSE listening'))
    );
  }

  #missed(pattern: RegExp, timeoutMs: number): Error {
    const last = this.#lines.slice(-15).map((line) => line.text);
    return new Error(`${pattern} was not said within ${timeoutMs} ms. Last:\n${last.join('\n')}`);
  }

  async #send(text: string): Promise<void> {
    const socket = await this.#connect();
    await new Promise<void>((resolve, reject) =>
      socket.write(text, (error) => (error ? reject(error) : resolve())),
    );
  }

  async #connect(): Promise<Socket> {
    const path = this.#options.commandSocketPath;
    if (path === undefined) throw new Error('this guest has no socket that takes commands');
    if (this.#socket !== undefined && !this.#socket.destroyed) return this.#socket;
    const socket = createConnection(path);
    await new Promise((resolve, reject) => socket.once('connect', resolve).once('error', reject));
    socket.on('error', () => socket.destroy()).on('end', () => socket.destroy());
    socket.unref();
    socket.setEncoding('latin1').on('data', (text: string) => (this.#answers += text));
    this.#socket = socket;
    return socket;
  }

  async #follow(): Promise<void> {
    const buffer = Buffer.alloc(64 * 1024);
    while (!this.#stop.signal.aborted) {
      // Keeps nobody waiting who has forgotten to close it.
      if (!(await this.#readMore(buffer))) await sleep(pollMs, undefined, { ref: false });
    }
    while (await this.#readMore(buffer));
  }

  async #readMore(buffer: Buffer): Promise<boolean> {
    const file = await fs.open(this.#options.logPath, 'r').catch(() => undefined);
    if (file === undefined) return false;
    try {
      // A hypervisor may begin the file anew when it starts the guest again.
      if ((await file.stat()).size < this.#offset) this.#offset = 0;
      const { bytesRead } = await file.read(buffer, 0, buffer.length, this.#offset);
      this.#offset += bytesRead;
      if (bytesRead > 0) this.#take(buffer.toString('latin1', 0, bytesRead));
      return bytesRead > 0;
    } finally {
      await file.close();
    }
  }

  #take(text: string): void {
    const atMs = performance.now();
    const parts = (this.#partial + text).split(/\r?\n/);
    this.#partial = parts.pop() ?? '';
    for (const part of parts) this.#lines.push({ text: part.replaceAll('\r', ''), atMs });
  }
}

/** The end of a guest's output, fit to print. */
function shown(text: string): string {
  return text.replace(/[^\n\P{Cc}]+/gu, '·').slice(-1500);
}

export interface HeartbeatReport {
  readonly seen: number;
  readonly first: number;
  readonly last: number;
  /** Numbers skipped: beats that the guest was too slow for, or that were never said. */
  readonly missed: number;
  /** The longest silence between two beats, as seen from here. */
  readonly longestGapMs: number;
}

/** Counts a guest's heartbeats from the lines of its serial port. */
export class Heartbeats {
  readonly #console: SerialConsole;

  constructor(serial: SerialConsole) {
    this.#console = serial;
  }

  /** Waits for `count` beats from now on and returns the last one's number. */
  async next(timeoutMs: number, count = 1): Promise<number> {
    let after = this.#console.position;
    let number = 0;
    for (let seen = 0; seen < count; seen++) {
      const match = await this.#console.waitFor(heartbeatLine, timeoutMs, after);
      number = Number(match[1]);
      after =
        this.#console.lines.findIndex(
          (line) => line.atMs >= match.atMs && line.text === match.input,
        ) + 1;
    }
    return number;
  }

  /** What was seen between two positions of the console (default: all of it). */
  report(from = 0, to = this.#console.position): HeartbeatReport {
    const beats = this.#console.lines.slice(from, to).flatMap(({ text, atMs }) => {
      const match = heartbeatLine.exec(text);
      return match === null ? [] : [{ number: Number(match[1]), atMs }];
    });
    let missed = 0;
    let longestGapMs = 0;
    for (let index = 1; index < beats.length; index++) {
      const [before, here] = [beats[index - 1], beats[index]];
      if (before === undefined || here === undefined) continue;
      missed += Math.max(0, here.number - before.number - 1);
      longestGapMs = Math.max(longestGapMs, here.atMs - before.atMs);
    }
    return {
      seen: beats.length,
      first: beats[0]?.number ?? 0,
      last: beats.at(-1)?.number ?? 0,
      missed,
      longestGapMs: Math.round(longestGapMs),
    };
  }
}

const heartbeatLine = /ROUSE heartbeat (\d+) /;
