import { formatLimits } from '../limits.ts';
import type { ImageFile } from './image-file.ts';

/**
 * Mapping tables of an image and its whole backing chain, read in pages as they are needed, the
 * longest unused ones dropped: memory does not grow with the disk.
 */
export class TableCache {
  readonly #pages = new Map<string, Buffer>();
  readonly #loading = new Map<string, Promise<void>>();
  readonly #identities = new Map<ImageFile, number>();

  /** The page that holds `position`, if it is in memory. */
  peek(file: ImageFile, position: number): TablePage | undefined {
    const index = Math.floor(position / pageBytes);
    const key = this.#key(file, index);
    const bytes = this.#pages.get(key);
    if (bytes === undefined) return undefined;
    if (this.#pages.size > formatLimits.tablePagesMax / 2) {
      this.#pages.delete(key);
      this.#pages.set(key, bytes);
    }
    return { bytes, position: index * pageBytes };
  }

  /** Brings the page into memory; `corrupt-data` when the file ends before `position`. */
  async load(file: ImageFile, position: number): Promise<void> {
    if (position >= file.sizeBytes) throw file.truncated(position, 8);
    const index = Math.floor(position / pageBytes);
    const key = this.#key(file, index);
    const running = this.#loading.get(key);
    if (running !== undefined) return running;
    const loading = this.#read(file, index, key);
    this.#loading.set(key, loading);
    try {
      await loading;
    } finally {
      this.#loading.delete(key);
    }
  }

  async #read(file: ImageFile, index: number, key: string): Promise<void> {
    const start = index * pageBytes;
    const bytes = Buffer.allocUnsafeSlow(Math.min(pageBytes, file.sizeBytes - start));
    await file.read(bytes, start);
    this.#pages.set(key, bytes);
    while (this.#pages.size > formatLimits.tablePagesMax) {
      const oldest = this.#pages.keys().next();
      if (oldest.done === true) break;
      this.#pages.delete(oldest.value);
    }
  }

  #key(file: ImageFile, index: number): string {
    let identity = this.#identities.get(file);
    if (identity === undefined) {
      identity = this.#identities.size;
      this.#identities.set(file, identity);
    }
    return `${identity}:${index}`;
  }
}

export interface TablePage {
  readonly bytes: Buffer;
  /** Of the page's first byte in the file. */
  readonly position: number;
}

const pageBytes = formatLimits.tablePageBytes;
