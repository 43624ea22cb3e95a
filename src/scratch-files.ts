import * as fs from 'node:fs/promises';
import * as path from 'node:path';
import { replaceFile } from './lib/replace-file.ts';
import { systemErrorCode } from './errors.ts';

/**
 * Small files of the server that are no part of the catalog: configuration and nvram between two
 * steps of a backup, and the last picture of a recovered machine's screen.
 */
export class ScratchFiles {
  readonly #scratch: string;
  readonly #pictures: string;

  constructor(scratch: string, pictures: string) {
    this.#scratch = scratch;
    this.#pictures = pictures;
  }

  async keep(backupId: string, value: unknown): Promise<void> {
    await replaceFile(this.#filesOf(backupId), JSON.stringify(value));
  }

  async kept(backupId: string): Promise<unknown> {
    return JSON.parse(await fs.readFile(this.#filesOf(backupId), 'utf8'));
  }

  async drop(backupId: string): Promise<void> {
    await fs.rm(this.#filesOf(backupId), { force: true });
  }

  #filesOf(backupId: string): string {
    return path.join(this.#scratch, `${backupId}.files.json`);
  }

  async keepPicture(recoveryId: string, png: Buffer): Promise<void> {
    await replaceFile(this.#pictureOf(recoveryId), png);
  }

  async picture(recoveryId: string): Promise<Buffer | undefined> {
    try {
      return await fs.readFile(this.#pictureOf(recoveryId));
    } catch (error) {
      if (systemErrorCode(error) === 'ENOENT') return undefined;
      throw error;
    }
  }

  #pictureOf(recoveryId: string): string {
    return path.join(this.#pictures, `${recoveryId}.png`);
  }
}

/** Whole and durable, or as before: a step's journal may refer to it. */
