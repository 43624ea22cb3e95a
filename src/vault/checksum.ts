import { createRequire } from 'node:module';

/**
 * XXH3, 64 bits, seed 0: the checksum that every record carries and every read verifies. It costs
 * 1.4 us for 20 KB where BLAKE3 costs 10, so a guest's read can afford it; `verify` re-hashes.
 * Debian's libxxhash through koffi, or the npm package where the library is missing.
 */
export const checksum: (bytes: Uint8Array) => bigint = loadChecksum();

function loadChecksum(): (bytes: Uint8Array) => bigint {
  const require = createRequire(import.meta.url);
  try {
    const loaded: unknown = require('koffi');
    const library = (loaded as typeof import('koffi')).load('libxxhash.so.0');
    const xxh3 = widest(library);
    return (bytes) => {
      const sum = xxh3(bytes, bytes.length);
      return typeof sum === 'bigint' ? sum : BigInt(sum);
    };
  } catch {
    return portableChecksum;
  }
}

type Xxh3 = (bytes: Uint8Array, length: number) => number | bigint;

/** With the processor's widest vectors, twice as fast, where the library was built to choose. */
function widest(library: import('koffi').LibraryHandle): Xxh3 {
  try {
    return library.func('uint64 XXH3_64bits_dispatch(void* bytes, size_t length)');
  } catch {
    return library.func('uint64 XXH3_64bits(void* bytes, size_t length)');
  }
}

let portable: typeof import('@node-rs/xxhash').xxh3 | undefined;

export function portableChecksum(bytes: Uint8Array): bigint {
  if (portable === undefined) {
    const loaded: unknown = createRequire(import.meta.url)('@node-rs/xxhash');
    portable = (loaded as typeof import('@node-rs/xxhash')).xxh3;
  }
  return portable.xxh64(bytes);
}
