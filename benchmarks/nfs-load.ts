import { connect, type Socket } from 'node:net';
import { parseArgs } from 'node:util';

/**
 * A pipelining NFSv3 client that makes load: it mounts a directory, looks a file up, and keeps
 * `depth` READs or WRITEs in flight on one connection. Requests are patched copies of one template,
 * and replies are only measured and counted, so that the client costs less than any server.
 *
 *   node benchmarks/nfs-load.ts --host H --nfs-port N --mount-port M --path /export/dir/file \
 *     --pattern randread|seqread|randwrite|seqwrite --size 4096 --depth 32 \
 *     --stable file|data|unstable --seconds S [--span BYTES] [--seed N] [--json]
 */
export interface LoadOptions {
  readonly host: string;
  readonly nfsPort: number;
  readonly mountPort: number;
  /** The file, its export included. Its directory is mounted. */
  readonly path: string;
  readonly pattern: 'randread' | 'seqread' | 'randwrite' | 'seqwrite';
  /** Bytes of one call. */
  readonly size: number;
  readonly depth: number;
  readonly stable: 'file' | 'data' | 'unstable';
  readonly seconds: number;
  /** Bytes of the file to use, from its start; without it, the whole file. */
  readonly span?: number;
  readonly seed?: number;
  /** Seconds before measuring begins. */
  readonly warmUpSeconds?: number;
}

export interface LoadResult {
  readonly pattern: string;
  readonly size: number;
  readonly depth: number;
  readonly stable: string;
  readonly seconds: number;
  readonly calls: number;
  readonly bytes: number;
  readonly callsPerSecond: number;
  readonly mebibytesPerSecond: number;
  readonly errors: number;
  readonly latencyMicroseconds: { mean: number; p50: number; p95: number; p99: number };
}

const NFS = 100_003;
const MOUNT = 100_005;
/** What one read of the socket takes at most. */
const RECEIVE_BYTES = 262_144;
const stableHow = { unstable: 0, data: 1, file: 2 } as const;

export async function runLoad(options: LoadOptions): Promise<LoadResult> {
  const slash = options.path.lastIndexOf('/');
  const directory = await mount(options, options.path.slice(0, slash));
  const connection = await Connection.open(options.host, options.nfsPort);
  try {
    const file = await lookup(connection, directory, options.path.slice(slash + 1));
    const span = Math.min(options.span ?? file.sizeBytes, file.sizeBytes);
    if (span < options.size) throw new Error(`the file has ${span} bytes only`);
    return await new Load(options, connection, file.handle, span).run();
  } finally {
    connection.close();
  }
}

/** One connection; replies are found by record marks alone. */
class Connection {
  readonly socket: Socket;
  onReply: (bytes: Buffer, start: number, length: number) => void = () => undefined;
  onChunkDone: () => void = () => undefined;
  onError: (error: Error) => void = () => undefined;
  readonly #head = Buffer.alloc(64);
  #headBytes = 0;
  #left = 0;
  #total = 0;

  #onCallBytes: ((chunk: Buffer) => void) | undefined;

  private constructor(open: (onBytes: (chunk: Buffer) => void) => Socket) {
    const socket = open((chunk) => {
      if (this.#onCallBytes === undefined) this.#take(chunk);
      else this.#onCallBytes(chunk);
    });
    this.socket = socket;
    socket.setNoDelay(true);
    socket.on('error', (error) => this.onError(error));
    socket.on('close', () => this.onError(new Error('the server closed the connection')));
  }

  static open(host: string, port: number): Promise<Connection> {
    // One buffer for all reads: fresh ones would cost as much as the rest of the client.
    const buffer = Buffer.alloc(RECEIVE_BYTES);
    return new Promise((resolve, reject) => {
      const connection = new Connection((onBytes) => {
        const callback = (bytes: number) => {
          onBytes(buffer.subarray(0, bytes));
          return true;
        };
        return connect({ host, port, onread: { buffer, callback } });
      });
      connection.onError = reject;
      connection.socket.once('connect', () => resolve(connection));
    });
  }

  close(): void {
    this.onError = () => undefined;
    this.socket.destroy();
  }

  /** Replies that span chunks: their first 64 bytes are kept, the rest is only counted. */
  #take(chunk: Buffer): void {
    let at = 0;
    while (at < chunk.length) {
      if (this.#left === 0 && this.#headBytes === 0 && at + 4 <= chunk.length) {
        const length = chunk.readUInt32BE(at) & 0x7fff_ffff;
        if (at + 4 + length <= chunk.length) {
          this.onReply(chunk, at + 4, length);
          at += 4 + length;
          continue;
        }
      }
      at = this.#takePart(chunk, at);
    }
    this.onChunkDone();
  }

  #takePart(chunk: Buffer, from: number): number {
    let at = from;
    if (this.#left === 0) {
      while (this.#headBytes < 4 && at < chunk.length) {
        this.#head[this.#headBytes++] = chunk[at++] ?? 0;
      }
      if (this.#headBytes < 4) return at;
      this.#total = this.#head.readUInt32BE(0) & 0x7fff_ffff;
      this.#left = this.#total;
    }
    const take = Math.min(this.#left, chunk.length - at);
    const keep = Math.min(take, this.#head.length - this.#headBytes);
    chunk.copy(this.#head, this.#headBytes, at, at + keep);
    this.#headBytes += keep;
    this.#left -= take;
    at += take;
    if (this.#left === 0) {
      const held = this.#headBytes - 4;
      this.#headBytes = 0;
      this.onReply(this.#head, 4, Math.max(held, 0));
    }
    return at;
  }

  /** One call and its whole results, for setting up (replies of less than 64 KiB, in one chunk). */
  call(program: number, procedure: number, args: Buffer): Promise<Buffer> {
    return new Promise((resolve, reject) => {
      let gathered = Buffer.alloc(0);
      this.#onCallBytes = (chunk: Buffer) => {
        gathered = Buffer.concat([gathered, chunk]);
        if (gathered.length < 4) return;
        const length = gathered.readUInt32BE(0) & 0x7fff_ffff;
        if (gathered.length < 4 + length) return;
        this.#onCallBytes = undefined;
        const status = gathered.readUInt32BE(4 + 8) || gathered.readUInt32BE(4 + 20);
        if (status !== 0) return reject(new Error(`the server refuses the call: ${status}`));
        resolve(gathered.subarray(4 + 24));
      };
      this.onError = reject;
      this.socket.write(encode(1, program, procedure, args));
    });
  }
}

/** A call as root with AUTH_SYS, record mark included. */
function encode(xid: number, program: number, procedure: number, args: Buffer): Buffer {
  // stamp, machine name "load", uid 0, gid 0, no groups
  const credential = words(0, 4, 0x6c6f_6164, 0, 0, 0);
  const head = words(xid, 0, 2, program, 3, procedure, 1, credential.length);
  const body = Buffer.concat([head, credential, words(0, 0), args]);
  return Buffer.concat([words((0x8000_0000 | body.length) >>> 0), body]);
}

function words(...values: number[]): Buffer {
  const bytes = Buffer.alloc(values.length * 4);
  for (const [index, value] of values.entries()) bytes.writeUInt32BE(value, index * 4);
  return bytes;
}

function opaque(bytes: Buffer): Buffer {
  return Buffer.concat([words(bytes.length), bytes, Buffer.alloc(-bytes.length & 3)]);
}

async function mount(options: LoadOptions, directory: string): Promise<Buffer> {
  const connection = await Connection.open(options.host, options.mountPort);
  try {
    const results = await connection.call(MOUNT, 1, opaque(Buffer.from(directory)));
    const status = results.readUInt32BE(0);
    if (status !== 0) throw new Error(`MNT of ${directory} fails with mountstat3 ${status}`);
    return Buffer.from(results.subarray(8, 8 + results.readUInt32BE(4)));
  } finally {
    connection.close();
  }
}

async function lookup(
  connection: Connection,
  directory: Buffer,
  name: string,
): Promise<{ handle: Buffer; sizeBytes: number }> {
  const args = Buffer.concat([opaque(directory), opaque(Buffer.from(name))]);
  const results = await connection.call(NFS, 3, args);
  const status = results.readUInt32BE(0);
  if (status !== 0) throw new Error(`LOOKUP of ${name} fails with nfsstat3 ${status}`);
  const handle = Buffer.from(results.subarray(8, 8 + results.readUInt32BE(4)));
  const attributes = await connection.call(NFS, 1, opaque(handle));
  return { handle, sizeBytes: Number(attributes.readBigUInt64BE(4 + 20)) };
}

/** xorshift32: the same places for the same seed, on every server. */
function generator(seed: number): () => number {
  let state = seed >>> 0 || 1;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) / 0x1_0000_0000;
  };
}

class Load {
  readonly #options: LoadOptions;
  readonly #connection: Connection;
  readonly #template: Buffer;
  readonly #offsetAt: number;
  readonly #blocks: number;
  readonly #random: () => number;
  readonly #sequential: boolean;
  readonly #isRead: boolean;
  /** When each slot's call was sent; the xid is the slot. */
  readonly #sentAt: Float64Array;
  /** Latencies in buckets of 5 %, from 1 µs. */
  readonly #buckets = new Uint32Array(400);
  #next = 0;
  #calls = 0;
  #errors = 0;
  #sumMs = 0;
  #measuring = false;
  #stopping = false;
  #inFlight = 0;
  #ready: number[] = [];
  /** Calls of one chunk of replies leave in one write; a few buffers take turns. */
  readonly #outputs: Buffer[] = [];
  #outputIndex = 0;
  #finish: () => void = () => undefined;

  constructor(options: LoadOptions, connection: Connection, handle: Buffer, span: number) {
    this.#options = options;
    this.#connection = connection;
    this.#isRead = options.pattern.endsWith('read');
    this.#sequential = options.pattern.startsWith('seq');
    const offsetAndCount = words(0, 0, options.size);
    const args = this.#isRead
      ? [opaque(handle), offsetAndCount]
      : [
          opaque(handle),
          offsetAndCount,
          words(stableHow[options.stable]),
          opaque(pattern(options.size)),
        ];
    this.#template = encode(0, NFS, this.#isRead ? 6 : 7, Buffer.concat(args));
    // mark, 8 words of header, 24 bytes of credential, verifier, handle
    this.#offsetAt = 4 + 32 + 24 + 8 + 4 + ((handle.length + 3) & ~3);
    this.#blocks = Math.floor(span / options.size);
    this.#random = generator(options.seed ?? 1);
    this.#sentAt = new Float64Array(options.depth);
    const copies = this.#template.length > 65_536 ? 1 : options.depth;
    for (let index = 0; index < 8; index++) {
      this.#outputs.push(Buffer.alloc(this.#template.length * copies));
    }
  }

  async run(): Promise<LoadResult> {
    const { depth, seconds, warmUpSeconds = 0.5 } = this.#options;
    const connection = this.#connection;
    const done = new Promise<void>((resolve, reject) => {
      this.#finish = resolve;
      connection.onError = reject;
    });
    connection.onReply = (bytes, start, length) => this.#onReply(bytes, start, length);
    connection.onChunkDone = () => this.#sendReady();
    for (let slot = 0; slot < depth; slot++) this.#ready.push(slot);
    this.#sendReady();
    await pause(warmUpSeconds);
    this.#measuring = true;
    const startMs = performance.now();
    await Promise.race([pause(seconds), done]);
    const elapsed = (performance.now() - startMs) / 1000;
    this.#measuring = false;
    this.#stopping = true;
    if (this.#inFlight > 0) await done;
    return this.#result(elapsed);
  }

  #onReply(bytes: Buffer, start: number, length: number): void {
    const slot = bytes.readUInt32BE(start);
    if (length < 28 || bytes.readUInt32BE(start + 8) !== 0) this.#errors++;
    else if (bytes.readUInt32BE(start + 20) !== 0 || bytes.readUInt32BE(start + 24) !== 0) {
      this.#errors++;
    }
    if (this.#measuring) {
      const tookMs = performance.now() - (this.#sentAt[slot] ?? 0);
      this.#calls++;
      this.#sumMs += tookMs;
      const bucket = Math.min(399, Math.max(0, Math.round(Math.log(tookMs * 1000) / STEP)));
      this.#buckets[bucket] = (this.#buckets[bucket] ?? 0) + 1;
    }
    this.#inFlight--;
    this.#ready.push(slot);
  }

  #sendReady(): void {
    if (this.#stopping) {
      if (this.#inFlight === 0) this.#finish();
      return;
    }
    const count = this.#ready.length;
    if (count === 0) return;
    this.#inFlight += count;
    const nowMs = performance.now();
    const large = this.#template.length > 65_536;
    const output = this.#outputs[this.#outputIndex++ % this.#outputs.length] as Buffer;
    let at = 0;
    if (large) this.#connection.socket.cork();
    for (const slot of this.#ready) {
      const into = large ? Buffer.allocUnsafe(this.#template.length) : output;
      this.#place(into, large ? 0 : at, slot);
      if (large) this.#connection.socket.write(into);
      at += this.#template.length;
      this.#sentAt[slot] = nowMs;
    }
    this.#ready.length = 0;
    // Copied, since the socket may keep it for longer than eight turns.
    if (large) this.#connection.socket.uncork();
    else this.#write(output.subarray(0, at));
  }

  #write(bytes: Buffer): void {
    const { socket } = this.#connection;
    socket.write(socket.writableLength > 0 ? Buffer.from(bytes) : bytes);
  }

  #place(into: Buffer, at: number, slot: number): void {
    this.#template.copy(into, at);
    into.writeUInt32BE(slot, at + 4);
    const block = this.#sequential
      ? this.#next++ % this.#blocks
      : Math.floor(this.#random() * this.#blocks);
    const offset = block * this.#options.size;
    into.writeUInt32BE(Math.floor(offset / 0x1_0000_0000), at + this.#offsetAt);
    into.writeUInt32BE(offset % 0x1_0000_0000, at + this.#offsetAt + 4);
  }

  #result(seconds: number): LoadResult {
    const { pattern, size, depth, stable } = this.#options;
    const bytes = this.#calls * size;
    return {
      pattern,
      size,
      depth,
      stable: this.#isRead ? '-' : stable,
      seconds,
      calls: this.#calls,
      bytes,
      callsPerSecond: this.#calls / seconds,
      mebibytesPerSecond: bytes / seconds / 1_048_576,
      errors: this.#errors,
      latencyMicroseconds: {
        mean: (this.#sumMs * 1000) / Math.max(1, this.#calls),
        p50: this.#quantile(0.5),
        p95: this.#quantile(0.95),
        p99: this.#quantile(0.99),
      },
    };
  }

  #quantile(share: number): number {
    let seen = 0;
    for (const [index, count] of this.#buckets.entries()) {
      seen += count;
      if (seen >= this.#calls * share) return Math.exp(index * STEP);
    }
    return 0;
  }
}

const STEP = Math.log(1.05);

/** Bytes that compress about two to one, as those of guests do. */
function pattern(size: number): Buffer {
  const random = generator(7);
  const bytes = Buffer.alloc(size);
  for (let at = 0; at < size; at += 2) bytes[at] = Math.floor(random() * 256);
  return bytes;
}

function pause(seconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, seconds * 1000));
}

const patterns = ['randread', 'seqread', 'randwrite', 'seqwrite'] as const;

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      host: { type: 'string', default: '127.0.0.1' },
      'nfs-port': { type: 'string', default: '2049' },
      'mount-port': { type: 'string' },
      path: { type: 'string' },
      pattern: { type: 'string', default: 'randread' },
      size: { type: 'string', default: '4096' },
      depth: { type: 'string', default: '32' },
      stable: { type: 'string', default: 'unstable' },
      seconds: { type: 'string', default: '3' },
      span: { type: 'string' },
      seed: { type: 'string', default: '1' },
      json: { type: 'boolean', default: false },
    },
  });
  const pattern = patterns.find((one) => one === values.pattern);
  const { stable, path } = values;
  if (pattern === undefined) throw new Error(`--pattern is one of ${patterns.join(', ')}`);
  if (stable !== 'file' && stable !== 'data' && stable !== 'unstable') {
    throw new Error('--stable is one of file, data, unstable');
  }
  if (path === undefined) throw new Error('--path is missing: /export/dir/file');
  const result = await runLoad({
    host: values.host,
    nfsPort: Number(values['nfs-port']),
    mountPort: Number(values['mount-port'] ?? values['nfs-port']),
    path,
    pattern,
    size: Number(values.size),
    depth: Number(values.depth),
    stable,
    seconds: Number(values.seconds),
    seed: Number(values.seed),
    ...(values.span === undefined ? {} : { span: Number(values.span) }),
  });
  if (values.json) console.log(JSON.stringify(result));
  else {
    const { mean, p99 } = result.latencyMicroseconds;
    console.log(
      `${pattern} ${result.size} B, depth ${result.depth}, ${result.stable}: ` +
        `${Math.round(result.callsPerSecond)} calls/s, ` +
        `${result.mebibytesPerSecond.toFixed(0)} MiB/s, ` +
        `mean ${mean.toFixed(0)} µs, p99 ${p99.toFixed(0)} µs, ${result.errors} errors`,
    );
  }
}

if (import.meta.main) await main();
