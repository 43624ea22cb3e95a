import { errorTable, type ErrorCode, RouseError } from '../errors.ts';
import { follow, Interrupted, type Terminal } from '../lib/terminal.ts';
import { printable, wrapText } from '../lib/text.ts';
import { commandLimits } from '../limits.ts';
import type { Recovery } from './schema.ts';
import { stepLine, stepLines, titleLine } from './steps-text.ts';

export function recoveryPath(reference: string): string {
  return `/v1/recoveries/${encodeURIComponent(reference)}`;
}

/**
 * Shows a recovery until `settled` says so, or it has ended: drawn again on a terminal, otherwise
 * a line per finished step, with `--json` nothing. Throws what the recovery failed of. Ctrl-C ends
 * the watching and nothing else.
 */
export async function followRecovery(
  reference: string,
  terminal: Terminal,
  settled: (state: Recovery['state']) => boolean,
): Promise<Recovery> {
  const controller = new AbortController();
  const stopListening = terminal.onInterrupt(() => controller.abort());
  const picture = terminal.json
    ? undefined
    : terminal.interactive
      ? new Redrawn(terminal)
      : new Printed(terminal);
  let last: Recovery | undefined;
  try {
    const path = `${recoveryPath(reference)}/events`;
    for await (const view of follow<Recovery>(terminal, path, controller.signal)) {
      last = view;
      picture?.show(view);
      if (settled(view.state)) break;
    }
  } finally {
    picture?.end();
    stopListening();
  }
  if (controller.signal.aborted) throw interrupted(last?.id ?? reference, terminal);
  if (last === undefined) throw new RouseError('internal', 'the server showed nothing of it');
  if (last.state === 'failed') throw failureOf(last);
  return last;
}

function interrupted(id: string, terminal: Terminal): Interrupted {
  terminal.note(`Stopped watching. Recovery ${id} goes on.`);
  terminal.note(`→ rouse watch ${id}    shows it again`);
  terminal.note(`→ rouse cancel ${id}   ends it and cleans up`);
  return new Interrupted();
}

function failureOf(view: Recovery): RouseError {
  const { code = 'internal', message = 'no reason was given', advice } = view.error ?? {};
  const known: ErrorCode = code in errorTable ? (code as ErrorCode) : 'internal';
  return new RouseError(known, `recovery ${view.id} of ${view.machine.name} failed: ${message}`, {
    ...(advice === undefined ? {} : { advice }),
    details: { recovery: view.id },
  });
}

/** Drawn again whenever it changes, and a few times a second for the running times. */
class Redrawn {
  readonly #terminal: Terminal;
  readonly #live: ReturnType<Terminal['live']>;
  readonly #timer: NodeJS.Timeout;
  #view: Recovery | undefined;
  #changed = false;

  constructor(terminal: Terminal) {
    this.#terminal = terminal;
    this.#live = terminal.live();
    this.#timer = setInterval(() => this.#draw(), commandLimits.redrawMs);
  }

  show(view: Recovery): void {
    this.#view = view;
    this.#changed = true;
  }

  #draw(): void {
    const view = this.#view;
    if (view === undefined) return;
    const running = view.steps.some((step) => step.state === 'running');
    if (!this.#changed && !running) return;
    this.#changed = false;
    const nowMs = this.#terminal.clock.now();
    this.#live.show([titleLine(view, this.#terminal), ...stepLines(view, this.#terminal, nowMs)]);
  }

  end(): void {
    clearInterval(this.#timer);
    this.#draw();
    this.#live.end();
  }
}

/** A line for each step that has ended, in the order in which they do. */
class Printed {
  readonly #terminal: Terminal;
  readonly #said = new Set<string>();
  #titled = false;

  constructor(terminal: Terminal) {
    this.#terminal = terminal;
  }

  show(view: Recovery): void {
    if (!this.#titled) this.#terminal.print(titleLine(view, this.#terminal));
    this.#titled = true;
    const nowMs = this.#terminal.clock.now();
    this.#sayWaiting(view);
    for (const step of view.steps) {
      const key = `${step.number} ${step.name} ${step.state}`;
      const over = step.state !== 'waiting' && step.state !== 'running';
      if (!over || this.#said.has(key)) continue;
      this.#said.add(key);
      const number = String(step.number).padStart(2);
      this.#terminal.print(stepLine(step, this.#terminal, nowMs, number));
    }
  }

  /** What a step that is tried again waits for, once. */
  #sayWaiting(view: Recovery): void {
    const parts = view.steps.flatMap((step) => (step.number === 13 ? step.subSteps : [step]));
    for (const { name, state, detail } of parts) {
      const key = `${name} ${detail ?? ''}`;
      if (state !== 'running' || detail === null || this.#said.has(key)) continue;
      this.#said.add(key);
      const told = wrapText(`! ${name}: ${detail}; it is tried again`, this.#terminal.width - 4);
      for (const line of told) this.#terminal.print(`   ${line}`);
    }
  }

  end(): void {
    // Every line stands already.
  }
}

export async function writePicture(file: string, picture: Uint8Array): Promise<void> {
  const { writeFile } = await import('node:fs/promises');
  const { toRouseError } = await import('../errors.ts');
  await writeFile(file, picture).catch((error: unknown) => {
    throw toRouseError(error, printable(file));
  });
}
