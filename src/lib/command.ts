import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { RouseError, systemErrorCode } from '../errors.ts';
import { processLimits } from '../limits.ts';

/**
 * Runs another program to its end: no shell, bounded output, bounded time, stoppable. A program
 * that cannot be found is `missing-tool`; one that takes too long is `time-out` and is killed; an
 * aborted one is killed and `cancelled`. A non-zero exit is an answer, not an error, of
 * `runCommand`; `runChecked` turns it into `io-error` with the program's own words.
 */
export interface CommandOptions {
  readonly environment?: Readonly<Record<string, string>>;
  readonly input?: string | Uint8Array;
  readonly timeoutMs?: number;
  readonly signal?: AbortSignal;
  /** More than this ends the program with `io-error`. */
  readonly outputBytesMax?: number;
  /** Sees what is printed as it comes, such as progress. */
  readonly onOutput?: (part: Buffer) => void;
  /** The Debian package that brings the program, for the advice. */
  readonly package?: string;
}

export interface CommandResult {
  /** The exit status; 128 + n after signal n, as a shell counts. */
  readonly exit: number;
  readonly stdout: Buffer;
  readonly stderr: string;
}

export async function runCommand(
  program: string,
  values: readonly string[],
  options: CommandOptions = {},
): Promise<CommandResult> {
  if (options.signal?.aborted) throw cancelled(program);
  const child = spawn(program, values, {
    stdio: ['pipe', 'pipe', 'pipe'],
    env: { ...process.env, LC_ALL: 'C', ...options.environment },
  });
  const watch = watchEnd(child, program, options);
  const stdout = new Collected(options.outputBytesMax ?? processLimits.outputBytesMax, watch.fail);
  const stderr = new Collected(errorBytesMax, () => undefined);
  child.stdout.on('data', (part: Buffer) => {
    stdout.add(part);
    options.onOutput?.(part);
  });
  child.stderr.on('data', (part: Buffer) => stderr.add(part));
  // A program that ends without reading its input closes the pipe; its exit status says why.
  child.stdin.on('error', () => undefined);
  child.stdin.end(options.input);
  const exit = await watch.ended;
  return { exit, stdout: stdout.bytes(), stderr: stderr.bytes().toString().trim() };
}

/** The same, where any exit but 0 is an error; answers what was printed. */
export async function runChecked(
  program: string,
  values: readonly string[],
  options: CommandOptions = {},
): Promise<string> {
  const result = await runCommand(program, values, options);
  if (result.exit === 0) return result.stdout.toString();
  throw new RouseError('io-error', `${program}: ${result.stderr || `exit ${result.exit}`}`, {
    details: { exit: result.exit },
  });
}

/** Whether the program is there at all, by asking it for its version. */
export async function hasCommand(program: string, versionFlag = '--version'): Promise<boolean> {
  try {
    await runCommand(program, [versionFlag], { timeoutMs: processLimits.commandTimeoutMs });
    return true;
  } catch {
    return false;
  }
}

/** What a program says about its failure: the first 64 KiB are enough. */
const errorBytesMax = 65_536;

class Collected {
  readonly #bytesMax: number;
  readonly #overflow: (error: RouseError) => void;
  readonly #parts: Buffer[] = [];
  #bytes = 0;

  constructor(bytesMax: number, overflow: (error: RouseError) => void) {
    this.#bytesMax = bytesMax;
    this.#overflow = overflow;
  }

  add(part: Buffer): void {
    const room = this.#bytesMax - this.#bytes;
    if (part.length > room) {
      this.#overflow(new RouseError('io-error', `it printed more than ${this.#bytesMax} bytes`));
    }
    const kept = part.subarray(0, Math.max(room, 0));
    this.#bytes += kept.length;
    if (kept.length > 0) this.#parts.push(kept);
  }

  bytes(): Buffer {
    return Buffer.concat(this.#parts);
  }
}

interface EndWatch {
  readonly ended: Promise<number>;
  /** Kills the program; the first reason given is what `ended` rejects with. */
  fail(error: RouseError): void;
}

function watchEnd(child: ChildProcess, program: string, options: CommandOptions): EndWatch {
  let failure: RouseError | undefined;
  const fail = (error: RouseError) => {
    failure ??= error;
    child.kill('SIGKILL');
  };
  const timeoutMs = options.timeoutMs ?? processLimits.commandTimeoutMs;
  const timer = setTimeout(
    () => fail(new RouseError('time-out', `${program} did not end within ${timeoutMs} ms`)),
    timeoutMs,
  );
  const onAbort = () => fail(cancelled(program));
  options.signal?.addEventListener('abort', onAbort, { once: true });
  const ended = (async () => {
    try {
      const [code, signal] = await once(child, 'close');
      if (failure !== undefined) throw failure;
      return typeof code === 'number' ? code : signalExit(signal);
    } catch (error) {
      throw startFailure(error, program, options.package);
    } finally {
      clearTimeout(timer);
      options.signal?.removeEventListener('abort', onAbort);
    }
  })();
  return { ended, fail };
}

function signalExit(signal: unknown): number {
  return signal === 'SIGKILL' ? 137 : 143;
}

function cancelled(program: string): RouseError {
  return new RouseError('cancelled', `${program} was stopped on request`);
}

function startFailure(error: unknown, program: string, packageName?: string): unknown {
  if (systemErrorCode(error) !== 'ENOENT') return error;
  return new RouseError('missing-tool', `the program ${program} is not installed`, {
    advice: `Install it: apt-get install ${packageName ?? packageOf[program] ?? program}`,
    cause: error,
  });
}

/** Debian 12. */
const packageOf: Readonly<Record<string, string>> = {
  virsh: 'libvirt-clients',
  libvirtd: 'libvirt-daemon',
  virtlogd: 'libvirt-daemon',
  'qemu-img': 'qemu-utils',
  'qemu-nbd': 'qemu-utils',
  'qemu-io': 'qemu-utils',
  'qemu-system-x86_64': 'qemu-system-x86',
  'mount.nfs': 'nfs-common',
  ip: 'iproute2',
  unshare: 'util-linux',
};
