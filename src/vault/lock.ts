import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { isRouseError, RouseError } from '../errors.ts';
import type { Clock } from '../lib/clock.ts';
import type { Files } from '../lib/files.ts';

/**
 * One process at a time owns an index directory, hence a vault. The lock is a file that names its
 * owner; an owner that is gone (killed, rebooted) leaves a lock that the next one takes over.
 */
export interface LockOwner {
  /** What to write into the lock: unique to this opening, and enough to find its process. */
  readonly name: string;
  /** Whether the process that wrote this lock still lives. */
  isAlive(name: string): boolean;
}

const lockFile = 'lock';

export async function takeLock(
  files: Files,
  directory: string,
  owner: LockOwner,
  clock: Clock,
): Promise<() => Promise<void>> {
  const path = join(directory, lockFile);
  await files.makeDirectory(directory);
  for (let attempt = 0; attempt < attemptsMax; attempt++) {
    if (await tryCreate(files, path, owner.name)) {
      return async () => {
        if ((await readLock(files, path)) === owner.name) await files.remove(path);
      };
    }
    const holder = await readWrittenLock(files, path, clock);
    if (holder === undefined) continue;
    if (owner.isAlive(holder)) throw lockedBy(directory, holder);
    await files.rename(path, `${path}.stale`).catch(ignoreMissing);
  }
  throw lockedBy(directory, 'another process');
}

/** Two takers of one stale lock meet at most twice: one of them creates. */
const attemptsMax = 4;

function ignoreMissing(error: unknown): void {
  if (!isRouseError(error, 'not-found')) throw error;
}

function lockedBy(directory: string, holder: string): RouseError {
  return new RouseError('busy', `the vault's index in ${directory} is in use by ${holder}`, {
    advice: 'Only one process may have a vault open; stop the other one first.',
  });
}

async function tryCreate(files: Files, path: string, content: string): Promise<boolean> {
  try {
    const file = await files.open(path, 'create');
    try {
      await file.write([Buffer.from(content)], 0);
    } finally {
      await file.close();
    }
    return true;
  } catch (error) {
    if (isRouseError(error, 'already-exists')) return false;
    throw error;
  }
}

/** A lock is empty for a moment after it was made, and after a power cut. */
async function readWrittenLock(files: Files, path: string, clock: Clock) {
  let holder = await readLock(files, path);
  for (let wait = 0; holder === '' && wait < 5; wait++) {
    await clock.sleep(10);
    holder = await readLock(files, path);
  }
  return holder;
}

async function readLock(files: Files, path: string): Promise<string | undefined> {
  try {
    const file = await files.open(path, 'read');
    try {
      const bytes = Buffer.alloc(256);
      return bytes.toString('utf8', 0, await file.read(bytes, 0));
    } finally {
      await file.close();
    }
  } catch (error) {
    ignoreMissing(error);
    return undefined;
  }
}

/** Openings of this very process, which `isAlive` cannot tell apart by the process id. */
const ownOpenings = new Set<string>();

/** Linux: process id and start time (proc_pid_stat(5), field 22) of this boot. */
export function processOwner(serial: string): LockOwner & { forget(): void } {
  const name = `process ${process.pid} ${startOf(process.pid)} ${bootId()} ${serial}`;
  ownOpenings.add(name);
  return {
    name,
    forget: () => void ownOpenings.delete(name),
    isAlive: (other) => {
      const [, pid, start, boot] = other.split(' ');
      if (pid === `${process.pid}` && start === startOf(process.pid)) return ownOpenings.has(other);
      return boot === bootId() && start !== undefined && startOf(Number(pid)) === start;
    },
  };
}

function startOf(pid: number): string | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    const [state, ...fields] = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    return state === 'Z' ? undefined : fields[18];
  } catch {
    return undefined;
  }
}

function bootId(): string {
  try {
    return readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();
  } catch {
    return 'unknown';
  }
}
