import {
  checkBlobName,
  existingBlob,
  missingBlob,
  shortBlob,
  type BlobReader,
  type BlobStore,
} from './port.ts';

/** A store in memory, for tests: the shortest thing that keeps the port's contract. */
export class MemoryBlobStore implements BlobStore {
  readonly place = 'memory';
  readonly blobs = new Map<string, Buffer>();

  async put(name: string, chunks: readonly Uint8Array[]): Promise<void> {
    checkBlobName(name);
    const bytes = Buffer.concat(chunks);
    if (this.blobs.has(name)) throw existingBlob(this.place, name);
    this.blobs.set(name, bytes);
  }

  async get(name: string): Promise<Buffer> {
    return Buffer.from(this.#find(name));
  }

  async open(name: string): Promise<BlobReader> {
    const bytes = this.#find(name);
    const readNow = (target: Uint8Array, position: number): boolean => {
      if (position + target.length > bytes.length) return false;
      bytes.copy(target, 0, position, position + target.length);
      return true;
    };
    return {
      sizeBytes: bytes.length,
      readNow,
      read: async (target, position) => {
        if (!readNow(target, position))
          throw shortBlob(name, position, target.length, bytes.length);
      },
      close: async () => {},
    };
  }

  #find(name: string): Buffer {
    checkBlobName(name);
    const bytes = this.blobs.get(name);
    if (bytes === undefined) throw missingBlob(this.place, name);
    return bytes;
  }

  async list(prefix: string) {
    return [...this.blobs]
      .filter(([name]) => name.startsWith(prefix))
      .map(([name, bytes]) => ({ name, sizeBytes: bytes.length }));
  }

  async stat(name: string) {
    checkBlobName(name);
    const bytes = this.blobs.get(name);
    return bytes === undefined ? undefined : { name, sizeBytes: bytes.length };
  }

  async remove(name: string): Promise<void> {
    checkBlobName(name);
    this.blobs.delete(name);
  }

  async space(): Promise<undefined> {
    return undefined;
  }
}
