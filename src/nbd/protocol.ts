/**
 * NBD, the network block device protocol (NetworkBlockDevice/nbd, doc/proto.md): numbers and the
 * layout of messages, for client and server. All integers are big endian.
 */
export const magic = {
  /** `NBDMAGIC` */
  server: 0x4e42444d41474943n,
  /** `IHAVEOPT` */
  option: 0x49484156454f5054n,
  /** cliserv_magic: the old handshake. */
  oldServer: 0x00420281861253n,
  optionReply: 0x3e889045565a9n,
  request: 0x25609513,
  simpleReply: 0x67446698,
  structuredReply: 0x668e33ef,
} as const;

/** "Handshake flags" and "Client flags": the same two bits. */
export const handshakeFlag = { fixedNewstyle: 1, noZeroes: 2 } as const;

/** "Transmission flags". */
export const transmissionFlag = {
  hasFlags: 1 << 0,
  readOnly: 1 << 1,
  sendFlush: 1 << 2,
  sendFua: 1 << 3,
  sendTrim: 1 << 5,
  sendWriteZeroes: 1 << 6,
  sendDf: 1 << 7,
  canMultiConn: 1 << 8,
} as const;

/** "Option types". */
export const option = {
  exportName: 1,
  abort: 2,
  list: 3,
  startTls: 5,
  info: 6,
  go: 7,
  structuredReply: 8,
  listMetaContext: 9,
  setMetaContext: 10,
} as const;

/** "Option reply types"; errors have bit 31 set. */
export const optionReply = {
  ack: 1,
  server: 2,
  info: 3,
  metaContext: 4,
  errorUnsupported: 2 ** 31 + 1,
  errorPolicy: 2 ** 31 + 2,
  errorInvalid: 2 ** 31 + 3,
  errorTlsRequired: 2 ** 31 + 5,
  errorUnknown: 2 ** 31 + 6,
  errorShutdown: 2 ** 31 + 7,
  errorBlockSizeRequired: 2 ** 31 + 8,
  errorTooBig: 2 ** 31 + 9,
} as const;

/** Kinds of NBD_REP_INFO. */
export const info = { export: 0, name: 1, description: 2, blockSize: 3 } as const;

/** "Request types". */
export const command = {
  read: 0,
  write: 1,
  disconnect: 2,
  flush: 3,
  trim: 4,
  cache: 5,
  writeZeroes: 6,
  blockStatus: 7,
} as const;

/** "Command flags". */
export const commandFlag = { fua: 1, noHole: 2, dontFragment: 4, requestOne: 8 } as const;

/** "Structured reply types"; errors have bit 15 set. */
export const chunk = {
  none: 0,
  offsetData: 1,
  offsetHole: 2,
  blockStatus: 5,
  error: 2 ** 15 + 1,
  errorOffset: 2 ** 15 + 2,
} as const;

export const chunkFlagDone = 1;

/** Flags of the context `base:allocation`. */
export const allocationFlag = { hole: 1, zero: 2 } as const;
export const allocationContext = 'base:allocation';
/** Bit 0 of QEMU's `qemu:dirty-bitmap:*` (docs/interop/nbd.txt): changed. */
export const dirtyFlag = 1;

/** "Error values". */
export const errno = {
  perm: 1,
  io: 5,
  noMemory: 12,
  invalid: 22,
  noSpace: 28,
  overflow: 75,
  notSupported: 95,
  shutdown: 108,
} as const;

export const requestBytes = 28;
export const simpleReplyBytes = 16;
export const chunkHeaderBytes = 20;

export interface Request {
  readonly flags: number;
  readonly type: number;
  readonly cookie: bigint;
  readonly offset: number;
  readonly length: number;
}

export function encodeRequest(request: Request): Buffer {
  const bytes = Buffer.allocUnsafe(requestBytes);
  bytes.writeUInt32BE(magic.request, 0);
  bytes.writeUInt16BE(request.flags, 4);
  bytes.writeUInt16BE(request.type, 6);
  bytes.writeBigUInt64BE(request.cookie, 8);
  bytes.writeBigUInt64BE(BigInt(request.offset), 16);
  bytes.writeUInt32BE(request.length, 24);
  return bytes;
}

/** Undefined: not a request at all. Offsets beyond 2^53 are all alike: too large. */
export function decodeRequest(bytes: Buffer): Request | undefined {
  if (bytes.length < requestBytes || bytes.readUInt32BE(0) !== magic.request) return undefined;
  return {
    flags: bytes.readUInt16BE(4),
    type: bytes.readUInt16BE(6),
    cookie: bytes.readBigUInt64BE(8),
    offset: readOffset(bytes, 16),
    length: bytes.readUInt32BE(24),
  };
}

export function encodeSimpleReply(cookie: bigint, error: number): Buffer {
  const bytes = Buffer.allocUnsafe(simpleReplyBytes);
  bytes.writeUInt32BE(magic.simpleReply, 0);
  bytes.writeUInt32BE(error, 4);
  bytes.writeBigUInt64BE(cookie, 8);
  return bytes;
}

export interface ChunkHeader {
  readonly flags: number;
  readonly type: number;
  readonly cookie: bigint;
  readonly length: number;
}

export function encodeChunkHeader(header: ChunkHeader): Buffer {
  const bytes = Buffer.allocUnsafe(chunkHeaderBytes);
  bytes.writeUInt32BE(magic.structuredReply, 0);
  bytes.writeUInt16BE(header.flags, 4);
  bytes.writeUInt16BE(header.type, 6);
  bytes.writeBigUInt64BE(header.cookie, 8);
  bytes.writeUInt32BE(header.length, 16);
  return bytes;
}

export function decodeChunkHeader(bytes: Buffer): ChunkHeader {
  return {
    flags: bytes.readUInt16BE(4),
    type: bytes.readUInt16BE(6),
    cookie: bytes.readBigUInt64BE(8),
    length: bytes.readUInt32BE(16),
  };
}

/** One descriptor of NBD_REPLY_TYPE_BLOCK_STATUS. */
export interface StatusExtent {
  readonly length: number;
  readonly flags: number;
}

/** Payload of a block status chunk; undefined when it is none. */
export function decodeStatus(
  payload: Buffer,
): { readonly context: number; readonly extents: readonly StatusExtent[] } | undefined {
  if (payload.length < 12 || (payload.length - 4) % 8 !== 0) return undefined;
  const extents: StatusExtent[] = [];
  for (let at = 4; at < payload.length; at += 8) {
    const length = payload.readUInt32BE(at);
    if (length === 0) return undefined;
    extents.push({ length, flags: payload.readUInt32BE(at + 4) });
  }
  return { context: payload.readUInt32BE(0), extents };
}

export function encodeStatus(context: number, extents: readonly StatusExtent[]): Buffer {
  const payload = Buffer.allocUnsafe(4 + extents.length * 8);
  payload.writeUInt32BE(context, 0);
  extents.forEach((extent, index) => {
    payload.writeUInt32BE(extent.length, 4 + index * 8);
    payload.writeUInt32BE(extent.flags, 8 + index * 8);
  });
  return payload;
}

/** Payload of an error chunk, with the sentence for people if there is one. */
export function decodeError(
  payload: Buffer,
): { readonly error: number; readonly message: string } | undefined {
  if (payload.length < 6) return undefined;
  const error = payload.readUInt32BE(0);
  const length = payload.readUInt16BE(4);
  if (error === 0 || 6 + length > payload.length) return undefined;
  return { error, message: payload.subarray(6, 6 + length).toString('utf8') };
}

export function encodeError(error: number, message: string): Buffer {
  const text = Buffer.from(message, 'utf8').subarray(0, 1024);
  const head = Buffer.allocUnsafe(6);
  head.writeUInt32BE(error, 0);
  head.writeUInt16BE(text.length, 4);
  return Buffer.concat([head, text]);
}

export function encodeOption(type: number, payload: Buffer): Buffer {
  const head = Buffer.allocUnsafe(16);
  head.writeBigUInt64BE(magic.option, 0);
  head.writeUInt32BE(type, 8);
  head.writeUInt32BE(payload.length, 12);
  return Buffer.concat([head, payload]);
}

export function encodeOptionReply(type: number, reply: number, payload: Buffer): Buffer {
  const head = Buffer.allocUnsafe(20);
  head.writeBigUInt64BE(magic.optionReply, 0);
  head.writeUInt32BE(type, 8);
  head.writeUInt32BE(reply, 12);
  head.writeUInt32BE(payload.length, 16);
  return Buffer.concat([head, payload]);
}

/** A string with its length before it, as options have them. */
export function encodeString(text: string): Buffer {
  const bytes = Buffer.from(text, 'utf8');
  const head = Buffer.allocUnsafe(4);
  head.writeUInt32BE(bytes.length, 0);
  return Buffer.concat([head, bytes]);
}

export function uint16(value: number): Buffer {
  const bytes = Buffer.allocUnsafe(2);
  bytes.writeUInt16BE(value, 0);
  return bytes;
}

export function uint32(value: number): Buffer {
  const bytes = Buffer.allocUnsafe(4);
  bytes.writeUInt32BE(value, 0);
  return bytes;
}

export function uint64(value: number): Buffer {
  const bytes = Buffer.allocUnsafe(8);
  bytes.writeBigUInt64BE(BigInt(value), 0);
  return bytes;
}

export function readOffset(bytes: Buffer, at: number): number {
  return bytes.readUInt32BE(at) * 2 ** 32 + bytes.readUInt32BE(at + 4);
}

/** Reads fields one after the other; undefined as soon as the bytes do not suffice. */
export class FieldReader {
  readonly #bytes: Buffer;
  #at = 0;

  constructor(bytes: Buffer) {
    this.#bytes = bytes;
  }

  get left(): number {
    return this.#bytes.length - this.#at;
  }

  uint16(): number | undefined {
    if (this.left < 2) return undefined;
    this.#at += 2;
    return this.#bytes.readUInt16BE(this.#at - 2);
  }

  uint32(): number | undefined {
    if (this.left < 4) return undefined;
    this.#at += 4;
    return this.#bytes.readUInt32BE(this.#at - 4);
  }

  /** With its length before it. */
  string(bytesMax: number): string | undefined {
    const length = this.uint32();
    if (length === undefined || length > bytesMax || length > this.left) return undefined;
    this.#at += length;
    return this.#bytes.subarray(this.#at - length, this.#at).toString('utf8');
  }
}
