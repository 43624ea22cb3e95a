import * as path from 'node:path';
import { z } from 'zod';
import { RouseError } from '../errors.ts';
import type { Files } from '../lib/files.ts';
import { proxyLimits } from '../limits.ts';

const entry = z.object({ cloneId: z.string(), clients: z.array(z.string()).readonly() });
const document = z.object({ version: z.literal(1), exports: z.array(entry) });
export type ExportEntry = z.infer<typeof entry>;

/**
 * Which clones are exported to whom, in one small file that is replaced as a whole: what a
 * restarted proxy serves before anyone asks.
 */
export class ExportList {
  readonly #files: Files;
  readonly #path: string;
  #entries: readonly ExportEntry[] = [];

  constructor(files: Files, file: string) {
    this.#files = files;
    this.#path = file;
  }

  async load(): Promise<void> {
    const stat = await this.#files.stat(this.#path);
    if (stat === undefined) return;
    if (stat.sizeBytes > proxyLimits.exportListBytesMax) throw this.#damaged('it is too large');
    const file = await this.#files.open(this.#path, 'read');
    try {
      const bytes = Buffer.alloc(stat.sizeBytes);
      await file.read(bytes, 0);
      this.#entries = document.parse(JSON.parse(bytes.toString('utf8'))).exports;
    } catch (error) {
      throw this.#damaged(error instanceof Error ? error.message : String(error));
    } finally {
      await file.close();
    }
  }

  #damaged(why: string): RouseError {
    return new RouseError('corrupt-data', `${this.#path} cannot be read: ${why}`, {
      advice: 'Move it away; cancel and recover the machines whose exports it listed.',
    });
  }

  all(): readonly ExportEntry[] {
    return this.#entries;
  }

  find(cloneId: string): ExportEntry | undefined {
    return this.#entries.find((candidate) => candidate.cloneId === cloneId);
  }

  async add(added: ExportEntry): Promise<void> {
    await this.#store([...this.#entries, added]);
  }

  async remove(cloneId: string): Promise<void> {
    await this.#store(this.#entries.filter((candidate) => candidate.cloneId !== cloneId));
  }

  /** Entries change before the file does, so that two changes at once both stay. */
  async #store(entries: readonly ExportEntry[]): Promise<void> {
    this.#entries = entries;
    this.#storing = this.#storing.catch(() => undefined).then(() => this.#write());
    await this.#storing;
  }

  #storing: Promise<void> = Promise.resolve();

  async #write(): Promise<void> {
    const text = JSON.stringify({ version: 1, exports: this.#entries }, null, 2);
    const temporary = `${this.#path}.new`;
    const file = await this.#files.open(temporary, 'write');
    try {
      await file.truncate(0);
      await file.write([Buffer.from(text)], 0);
      await file.sync();
    } finally {
      await file.close();
    }
    await this.#files.rename(temporary, this.#path);
    await this.#files.syncDirectory(path.dirname(this.#path));
  }
}
