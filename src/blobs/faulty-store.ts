import type { BlobReader, BlobStore } from './port.ts';

/**
 * What the fault decorator asks around each operation. `before` may throw: nothing has happened
 * then. `afterPut` may throw: the blob is stored, and the caller hears an error nevertheless.
 * `afterRead` may change the bytes in place.
 */
export interface FaultRules {
  before?(operation: Operation, name: string): void;
  afterPut?(name: string): void;
  afterRead?(name: string, bytes: Uint8Array, position: number): void;
  /** True: `readNow` pretends that the disk must be waited for. */
  isCold?(name: string, position: number): boolean;
}

export type Operation = 'put' | 'get' | 'open' | 'read' | 'list' | 'stat' | 'remove';

/** A store that fails as its rules say; everything else is passed on. */
export function withFaults(store: BlobStore, rules: FaultRules): BlobStore {
  const before = (operation: Operation, name: string) => rules.before?.(operation, name);
  return {
    place: store.place,
    put: async (name, chunks) => {
      before('put', name);
      await store.put(name, chunks);
      rules.afterPut?.(name);
    },
    get: async (name) => {
      before('get', name);
      const bytes = await store.get(name);
      rules.afterRead?.(name, bytes, 0);
      return bytes;
    },
    open: async (name) => {
      before('open', name);
      return faultyReader(name, await store.open(name), rules);
    },
    list: async (prefix) => {
      before('list', prefix);
      return store.list(prefix);
    },
    stat: async (name) => {
      before('stat', name);
      return store.stat(name);
    },
    remove: async (name) => {
      before('remove', name);
      await store.remove(name);
    },
    space: () => store.space(),
  };
}

function faultyReader(name: string, reader: BlobReader, rules: FaultRules): BlobReader {
  return {
    sizeBytes: reader.sizeBytes,
    readNow: (target, position) => {
      if (rules.isCold?.(name, position) === true) return false;
      rules.before?.('read', name);
      const answered = reader.readNow(target, position);
      if (answered) rules.afterRead?.(name, target, position);
      return answered;
    },
    read: async (target, position) => {
      rules.before?.('read', name);
      await reader.read(target, position);
      rules.afterRead?.(name, target, position);
    },
    close: () => reader.close(),
  };
}
