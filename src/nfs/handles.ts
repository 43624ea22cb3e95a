import { createHmac } from 'node:crypto';
import { nfsLimits } from '../limits.ts';
import type { FileId } from './file-system.ts';
import type { XdrReader, XdrWriter } from './xdr.ts';

/**
 * A file handle: version, export id, file id, generation, and a MAC over all of it under the
 * export's secret. No table is kept that a restart could lose, and guessing a handle gives nothing.
 *
 *   0 u32 version and magic   4 u32 export   8 u64 file   16 u32 generation   20 16 bytes of MAC
 *
 * The MAC is HMAC-SHA256 cut to 128 bits (RFC 2104 5). It costs some 5 to 15 µs, so handles that
 * were found good are remembered per export, a bounded number of them.
 */
export const HANDLE_BYTES = 36;
const MAC_AT = 20;
const MAC_BYTES = 16;
/** "ROU" and the version. */
const VERSION = 0x524f_5501;

/** NFS3_FHSIZE (RFC 1813 2.4). */
export const HANDLE_BYTES_MAX = 64;

/** A handle as it came, not believed yet. Reused from call to call. */
export class HandleParts {
  exportId = 0;
  file: FileId = 0;
  generation = 0;
  mac0 = 0;
  mac1 = 0;
  mac2 = 0;
  mac3 = 0;

  /** Reads nfs_fh3; false when it cannot be one of ours. */
  read(reader: XdrReader): boolean {
    const length = reader.count(HANDLE_BYTES_MAX);
    const at = reader.skip(length);
    if (length !== HANDLE_BYTES) return false;
    const view = reader.view;
    if (view.getUint32(at) !== VERSION) return false;
    this.exportId = view.getUint32(at + 4);
    this.file = view.getUint32(at + 8) * 0x1_0000_0000 + view.getUint32(at + 12);
    this.generation = view.getUint32(at + 16);
    this.mac0 = view.getInt32(at + 20);
    this.mac1 = view.getInt32(at + 24);
    this.mac2 = view.getInt32(at + 28);
    this.mac3 = view.getInt32(at + 32);
    return true;
  }
}

interface Known {
  readonly generation: number;
  readonly handle: Buffer;
  readonly mac0: number;
  readonly mac1: number;
  readonly mac2: number;
  readonly mac3: number;
}

/** Makes and checks the handles of one export. */
export class HandleMaker {
  readonly #exportId: number;
  readonly #secret: Buffer;
  readonly #known = new Map<FileId, Known>();

  constructor(exportId: number, secret: Uint8Array) {
    this.#exportId = exportId;
    this.#secret = Buffer.from(secret);
  }

  /** Whether we made this handle, for a file and generation that may be gone since. */
  verify(parts: HandleParts): boolean {
    const found = this.#known.get(parts.file);
    if (found !== undefined && found.generation === parts.generation) {
      return isSameMac(found, parts);
    }
    const made = this.#make(parts.file, parts.generation);
    // Only good ones are remembered, so that guessing does not push others out.
    if (!isSameMac(made, parts)) return false;
    this.#remember(parts.file, made);
    return true;
  }

  /** The handle of a file; its memory is shared: copy, do not change. */
  handle(file: FileId, generation: number): Buffer {
    const found = this.#known.get(file);
    if (found !== undefined && found.generation === generation) return found.handle;
    const made = this.#make(file, generation);
    this.#remember(file, made);
    return made.handle;
  }

  /** nfs_fh3 on the wire. */
  write(writer: XdrWriter, file: FileId, generation: number): void {
    writer.opaque(this.handle(file, generation));
  }

  #remember(file: FileId, known: Known): void {
    // Maps keep insertion order: the one remembered longest ago goes.
    if (!this.#known.has(file) && this.#known.size >= nfsLimits.verifiedHandlesMax) {
      for (const oldest of this.#known.keys()) {
        this.#known.delete(oldest);
        break;
      }
    }
    this.#known.set(file, known);
  }

  #make(file: FileId, generation: number): Known {
    const handle = Buffer.alloc(HANDLE_BYTES);
    handle.writeUInt32BE(VERSION, 0);
    handle.writeUInt32BE(this.#exportId, 4);
    handle.writeBigUInt64BE(BigInt(file), 8);
    handle.writeUInt32BE(generation >>> 0, 16);
    const mac = createHmac('sha256', this.#secret).update(handle.subarray(0, MAC_AT)).digest();
    mac.copy(handle, MAC_AT, 0, MAC_BYTES);
    return {
      generation,
      handle,
      mac0: mac.readInt32BE(0),
      mac1: mac.readInt32BE(4),
      mac2: mac.readInt32BE(8),
      mac3: mac.readInt32BE(12),
    };
  }
}

/** No early exit: the time taken must not tell how many words of a guess were right. */
function isSameMac(known: Known, parts: HandleParts): boolean {
  const difference =
    (known.mac0 ^ parts.mac0) |
    (known.mac1 ^ parts.mac1) |
    (known.mac2 ^ parts.mac2) |
    (known.mac3 ^ parts.mac3);
  return difference === 0;
}
