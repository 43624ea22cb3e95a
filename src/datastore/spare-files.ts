import { isRouseError } from '../errors.ts';
import type { Files, OpenFile } from '../lib/files.ts';
import { datastoreLimits } from '../limits.ts';
import { pageBytes } from './layer-format.ts';

/**
 * Files of segments in which nothing lives any more, kept to be written again. Their blocks are
 * allocated and written already, so a sync of what overwrites them is a sync of those bytes alone
 * (prewriting.ts has the figures), and the file system has nothing to free. What is left in them
 * from before counts for nobody: batches carry the nonce of their segment, and a segment gets a new
 * one whenever its file is used.
 *
 * A file is called `spare-…` from the moment its segment goes until its next header is durable: so
 * a file called `segment-…` has never a header that is not its own, whenever the power goes.
 */
export class SpareFiles {
  readonly #files: Files;
  readonly #directory: string;
  readonly #kept: { readonly path: string; readonly writtenBytes: number }[] = [];

  constructor(files: Files, directory: string) {
    this.#files = files;
    this.#directory = directory;
  }

  get bytes(): number {
    return this.#kept.reduce((sum, { writtenBytes }) => sum + writtenBytes, 0);
  }

  get isFull(): boolean {
    return this.#kept.length >= datastoreLimits.spareFilesMax;
  }

  /** Takes over the file of segment `id`; nobody has it open. `writtenBytes`: without holes. */
  async keep(path: string, id: number, writtenBytes: number): Promise<void> {
    const spare = `${this.#directory}/${spareName(id)}`;
    await this.#files.rename(path, spare);
    this.#kept.push({ path: spare, writtenBytes });
  }

  /**
   * Makes one of the files the segment at `path`, which begins with `header`; the caller syncs the
   * new name. undefined: there is none that can be used.
   */
  async use(
    path: string,
    header: Buffer,
  ): Promise<{ readonly file: OpenFile; readonly writtenBytes: number } | undefined> {
    const spare = this.#kept.pop();
    if (spare === undefined) return undefined;
    try {
      // Its old name must not come back with the new header in it.
      await this.#files.syncDirectory(this.#directory);
      await this.#begin(spare.path, header);
      await this.#files.rename(spare.path, path);
      return { file: await this.#files.open(path, 'write'), writtenBytes: spare.writtenBytes };
    } catch (error) {
      if (!isRouseError(error)) throw error;
      await this.#files.remove(spare.path).catch(() => undefined);
      return undefined;
    }
  }

  async #begin(path: string, header: Buffer): Promise<void> {
    const file = await this.#files.open(path, 'write');
    try {
      await file.write([header, zeros.subarray(header.length)], 0);
      await file.sync();
    } finally {
      await file.close();
    }
  }

  async drop(): Promise<void> {
    for (const { path } of this.#kept.splice(0)) await this.#files.remove(path);
  }
}

/** A page written in part would have to be read from the disk first. */
const zeros = Buffer.alloc(pageBytes);

function spareName(id: number): string {
  return `spare-${String(id).padStart(12, '0')}`;
}

/** Which segment a file was, by its name; undefined: it is no spare one. */
export function spareId(name: string): number | undefined {
  const match = /^spare-(\d{12})$/.exec(name);
  return match === null ? undefined : Number(match[1]);
}
