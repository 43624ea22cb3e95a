import { chmod, mkdir, open, readFile, rename, rm } from 'node:fs/promises';
import * as path from 'node:path';
import { RouseError, systemErrorCode, toRouseError } from '../errors.ts';

/**
 * Passwords that Rouse has to know in clear: one file each, readable by its own user alone, in a
 * directory that nobody else may enter. They are in no table, no log, no answer and no error.
 */
export class SecretFiles {
  readonly #directory: string;

  constructor(directory: string) {
    this.#directory = directory;
  }

  /** Durable when it resolves; replaces what was there at once or not at all. */
  async put(id: string, secret: string): Promise<void> {
    const place = this.#path(id);
    try {
      await mkdir(this.#directory, { recursive: true, mode: 0o700 });
      await chmod(this.#directory, 0o700);
      const fresh = await open(`${place}.new`, 'w', 0o600);
      try {
        await fresh.chmod(0o600);
        await fresh.writeFile(secret);
        await fresh.sync();
      } finally {
        await fresh.close();
      }
      await rename(`${place}.new`, place);
      const directory = await open(this.#directory, 'r');
      await directory.sync().finally(() => directory.close());
    } catch (error) {
      throw toRouseError(error, `the secret ${id}`);
    }
  }

  async get(id: string): Promise<string> {
    try {
      return await readFile(this.#path(id), 'utf8');
    } catch (error) {
      if (systemErrorCode(error) !== 'ENOENT') throw toRouseError(error, `the secret ${id}`);
      throw new RouseError('not-found', `the password of ${id} is not there any more`, {
        advice: 'Remove the hypervisor and add it again with its password.',
      });
    }
  }

  /** No error when it is gone. */
  async remove(id: string): Promise<void> {
    await rm(this.#path(id), { force: true });
  }

  #path(id: string): string {
    if (!/^[A-Za-z0-9-]+$/u.test(id)) throw new RouseError('internal', `"${id}" names no secret`);
    return path.join(this.#directory, id);
  }
}
