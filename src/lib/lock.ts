import * as fs from 'node:fs';
import { RouseError, toRouseError } from '../errors.ts';
import { tryLock } from './libc.ts';

export interface Lock {
  release(): void;
}

/**
 * Takes the lock file at `path` for this process, or throws `busy` naming who holds it. The
 * kernel gives the lock back when the process dies, so a stale file never blocks anyone.
 */
export function takeLock(path: string, what: string): Lock {
  let fd: number;
  try {
    fd = fs.openSync(path, fs.constants.O_RDWR | fs.constants.O_CREAT, 0o600);
  } catch (error) {
    throw toRouseError(error, path);
  }
  if (!tryLock(fd)) {
    const holder = fs.readFileSync(path, 'utf8').trim();
    fs.closeSync(fd);
    throw new RouseError('busy', `${what} is in use by process ${holder || 'unknown'}`, {
      advice: 'Use the one that runs, stop it first, or name another directory.',
      details: { path, holder },
    });
  }
  fs.ftruncateSync(fd);
  fs.writeSync(fd, `${process.pid}\n`, 0);
  return { release: () => fs.closeSync(fd) };
}
