import type { Command } from 'commander';
import { RouseError } from '../errors.ts';
import { commandLimits, recoveryLimits } from '../limits.ts';
import type { Clock } from './clock.ts';
import type { HttpClient } from './http-client.ts';
import type { Column } from './text.ts';
import { parseTime, tryDuration } from './times.ts';

/**
 * What a feature's commands.ts needs of the command line, so that it can say what it offers
 * without knowing the rest: a terminal to speak to, and a way to follow something on the server.
 * Answers go to stdout, everything else (notes, progress of `--json`, errors) to stderr.
 */
export interface Terminal {
  /** `--json`: one JSON value on stdout and nothing else. */
  readonly json: boolean;
  /** Cells of a line: the window's width, 80 when there is none. */
  readonly width: number;
  /** stdout is a terminal, so that lines may be drawn again. */
  readonly interactive: boolean;
  readonly clock: Clock;
  /** The directory of all data that this command means. */
  readonly dataDirectory: string;
  /** The running server. Connects when first called upon. */
  client(): Promise<HttpClient>;
  print(line: string): void;
  note(line: string): void;
  /** `value` with `--json`, otherwise what `show` prints. */
  answer(value: unknown, show: () => void): void;
  table(columns: readonly Column[], rows: readonly (readonly string[])[], empty: string): void;
  /** Lines that replace each other on a terminal; call only when `interactive`. */
  live(): { show(lines: readonly string[]): void; end(): void };
  paint(style: Style, text: string): string;
  /** Ctrl-C from now on; answers the function that ends it. */
  onInterrupt(handler: () => void): () => void;
  /** Yes or no; `no` when nobody can answer. */
  ask(question: string, signal?: AbortSignal): Promise<boolean>;
}

export type Style = 'bold' | 'dim' | 'red' | 'green' | 'yellow' | 'cyan';

/** Ctrl-C: everything was said already; the command ends with 130 (128 + SIGINT). */
export class Interrupted extends Error {
  constructor() {
    super('interrupted');
    this.name = 'Interrupted';
  }
}

/** Adds a feature's commands to the program. */
export type Commands = (program: Command, terminal: Terminal) => void;

/** Shown below `--help`. */
export function examples(command: Command, lines: readonly string[]): Command {
  const title = lines.length === 1 ? 'Example:' : 'Examples:';
  return command.addHelpText('after', `\n${title}\n${lines.map((line) => `  ${line}`).join('\n')}`);
}

/** Collects an option that may be given several times. */
export function repeated(value: string, before: readonly string[] | undefined): readonly string[] {
  return [...(before ?? []), value];
}

/** `5d`, `90m`, or the time at which it ends. Throws `bad-request` for one in the past. */
export async function leaseOf(text: string, nowMs: number): Promise<number> {
  const duration = tryDuration(text);
  const advice = 'Write how long from now, such as 5d or 12h, or until when: "friday 18:00".';
  let lease = duration;
  try {
    lease ??= (await parseTime(text, '--lease', nowMs, 'future')) - nowMs;
  } catch {
    throw new RouseError('bad-request', `--lease "${text}" is neither a duration nor a time`, {
      advice,
    });
  }
  if (lease <= 0) {
    throw new RouseError('bad-request', `--lease "${text}" is in the past`, { advice });
  }
  const most = recoveryLimits.leaseMsMax;
  if (lease > most) {
    const days = most / 86_400_000;
    throw new RouseError('bad-request', `--lease "${text}" is longer than ${days} days`, {
      advice: 'Relocate a machine that shall stay: rouse relocate NAME --to DATASTORE',
    });
  }
  return lease;
}

/**
 * The views of something on the server, as they change. A server that goes away meanwhile is waited
 * for: what it does goes on when it is back.
 */
export async function* follow<View>(
  terminal: Terminal,
  path: string,
  signal: AbortSignal,
): AsyncGenerator<View> {
  const client = await terminal.client();
  let seen = false;
  let lostAtMs: number | undefined;
  for (;;) {
    try {
      for await (const event of client.events(path, signal)) {
        if (lostAtMs !== undefined) terminal.note('The server is back.');
        lostAtMs = undefined;
        seen = true;
        // What the server sends here is what its schema says: both are of one release.
        yield event.data as View;
      }
      return;
    } catch (error) {
      const away = error instanceof RouseError && error.code === 'server-unreachable';
      const now = terminal.clock.monotonic();
      if (lostAtMs === undefined && away && seen) {
        terminal.note('The server went away; waiting for it. The work is kept.');
        lostAtMs = now;
      }
      if (!away || lostAtMs === undefined || now - lostAtMs > commandLimits.serverAwayMsMax) {
        throw error;
      }
    }
    await terminal.clock.sleep(commandLimits.serverRetryMs, signal).catch(() => undefined);
    if (signal.aborted) return;
  }
}
