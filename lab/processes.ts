import { execFile, spawn } from 'node:child_process';
import type { ChildProcess, SpawnOptions } from 'node:child_process';
import { setTimeout as sleep } from 'node:timers/promises';

/**
 * Programs that tests and the demo run. `run` waits for one and returns what it said; `Processes`
 * keeps what was started in the background and ends exactly that, by process id.
 */
export interface RunOptions {
  readonly cwd?: string;
  readonly env?: NodeJS.ProcessEnv;
  readonly input?: string | Uint8Array;
  readonly timeoutMs?: number;
}

export interface RunResult {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** Directories of the tools that Debian keeps off the PATH of ordinary users. */
export const toolPath = `${process.env['PATH'] ?? ''}:/usr/sbin:/sbin`;

/** Rejects, naming the command and what it wrote, unless it exits with 0. */
export async function run(
  command: string,
  args: readonly string[],
  options: RunOptions = {},
): Promise<string> {
  const result = await attempt(command, args, options);
  if (result.code === 0) return result.stdout;
  const said = (result.stderr.trim() || result.stdout.trim()).slice(-2000);
  throw new Error(`${command} ${args.join(' ')}: exit ${result.code}\n${said}`);
}

/** The same, for commands whose failure is an answer. A command that is missing still rejects. */
export function attempt(
  command: string,
  args: readonly string[],
  options: RunOptions = {},
): Promise<RunResult> {
  return new Promise((resolve, reject) => {
    const child = execFile(
      command,
      args,
      {
        cwd: options.cwd,
        env: { ...process.env, ...options.env, PATH: options.env?.['PATH'] ?? toolPath },
        timeout: options.timeoutMs ?? 120_000,
        killSignal: 'SIGKILL',
        maxBuffer: 256 * 1024 * 1024,
      },
      (error, stdout, stderr) => {
        if (error !== null && typeof error.code === 'string') return reject(error);
        const timedOut = error?.killed === true ? `\n(ended after its time limit)` : '';
        const code = error === null ? 0 : (error.code ?? -1);
        resolve({ code: Number(code), stdout, stderr: stderr + timedOut });
      },
    );
    child.stdin?.on('error', () => undefined);
    child.stdin?.end(options.input ?? '');
  });
}

export class Processes {
  readonly #started = new Map<ChildProcess, string>();
  #watching = false;

  /** Starts a program in the background. `onExit` is told when it ends, however it ends. */
  start(
    command: string,
    args: readonly string[],
    options: SpawnOptions & { readonly onExit?: (code: number | null) => void } = {},
  ): ChildProcess {
    const child = spawn(command, args, {
      stdio: ['ignore', 'ignore', 'inherit'],
      ...options,
      env: { ...process.env, PATH: toolPath, ...options.env },
    });
    this.#watchExit();
    this.#started.set(child, command);
    // It keeps nobody waiting: who forgets to end it sees it end with this process.
    child.unref();
    child.once('error', () => this.#started.delete(child));
    child.once('exit', (code) => {
      this.#started.delete(child);
      options.onExit?.(code);
    });
    return child;
  }

  #watchExit(): void {
    if (this.#watching) return;
    this.#watching = true;
    process.once('exit', () => {
      for (const child of this.#started.keys()) child.kill('SIGKILL');
    });
  }

  get running(): readonly string[] {
    return [...this.#started.values()];
  }

  /** Asks it to end, insists after `patienceMs`, and returns when it is gone. */
  async end(child: ChildProcess, patienceMs = 5000): Promise<void> {
    if (child.exitCode !== null || child.signalCode !== null || child.pid === undefined) return;
    const gone = new Promise<void>((resolve) => child.once('exit', () => resolve()));
    child.ref();
    child.kill('SIGTERM');
    const timer = setTimeout(() => child.kill('SIGKILL'), patienceMs);
    await gone;
    clearTimeout(timer);
  }

  /** Ends everything that was started here, newest first. */
  async endAll(): Promise<void> {
    for (const child of [...this.#started.keys()].toReversed()) await this.end(child);
  }
}

/** Repeats `check` until it gives something, or rejects after `timeoutMs` naming what was missed. */
export async function eventually<T>(
  what: string,
  check: () => Promise<T | undefined> | T | undefined,
  timeoutMs = 10_000,
  everyMs = 50,
): Promise<T> {
  const deadline = performance.now() + timeoutMs;
  for (;;) {
    const found = await check();
    if (found !== undefined && found !== false) return found;
    if (performance.now() > deadline) throw new Error(`${what}: not within ${timeoutMs} ms`);
    await sleep(everyMs);
  }
}
