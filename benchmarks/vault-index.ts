/**
 * The vault's index against LMDB: memory or disk an entry, insertions and look-ups a second.
 * `node benchmarks/vault-index.ts [millions] [millions for lmdb]`.
 */
import { rm } from 'node:fs/promises';
import { open } from 'lmdb';
import { systemClock } from '#src/lib/clock.ts';
import { BlockIndex } from '#src/vault/block-index.ts';

const entries = Number(process.argv[2] ?? 30) * 1e6;
const lmdbEntries = Number(process.argv[3] ?? 2) * 1e6;
const lookups = 1e6;

/** Entry n's id: a bijection of n, spread like a hash (murmur3's finaliser). */
function idOf(n: number, id: Buffer): void {
  for (let word = 0; word < 3; word++) {
    let h = (n + word * 0x9e3779b9) >>> 0;
    h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
    h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
    id.writeUInt32BE((h ^ (h >>> 16)) >>> 0, word * 4);
  }
}

function perSecond(count: number, work: () => void): number {
  const start = systemClock.monotonic();
  work();
  return Math.round((count * 1000) / (systemClock.monotonic() - start));
}

const id = Buffer.alloc(32);
const place = { pack: 1, offset: 4096, length: 16_384 };
const index = new BlockIndex();
const before = process.memoryUsage.rss();
const inserts = perSecond(entries, () => {
  for (let n = 0; n < entries; n++) {
    idOf(n, id);
    index.insert(id, 0, place);
  }
});
let found = 0;
const hits = perSecond(lookups, () => {
  for (let n = 0; n < lookups; n++) {
    idOf(Math.imul(n, 7919) % entries, id);
    if (index.find(id, 0, place)) found++;
  }
});
const misses = perSecond(lookups, () => {
  for (let n = 0; n < lookups; n++) {
    idOf(entries + n, id);
    if (index.find(id, 0, place)) found++;
  }
});
globalThis.gc?.();
const resident = process.memoryUsage.rss() - before;

const directory = '/tmp/rouse-bench-lmdb';
await rm(directory, { recursive: true, force: true });
const db = open<Buffer, Buffer>({ path: directory, keyEncoding: 'binary', encoding: 'binary' });
const value = Buffer.alloc(12, 1);
const lmdbStart = systemClock.monotonic();
for (let n = 0; n < lmdbEntries; n++) {
  idOf(n, id);
  void db.put(Buffer.from(id), value);
  if (n % 10_000 === 9_999) await db.committed;
}
await db.flushed;
const lmdbInserts = Math.round((lmdbEntries * 1000) / (systemClock.monotonic() - lmdbStart));
const lmdbHits = perSecond(lookups, () => {
  for (let n = 0; n < lookups; n++) {
    idOf((n * 7919) % lmdbEntries, id);
    if (db.get(id) !== undefined) found++;
  }
});
const lmdbBytes = (db.getStats() as { mapSize?: number }).mapSize ?? 0;
await db.close();
await rm(directory, { recursive: true, force: true });

console.table([
  {
    index: 'sorted shards',
    entries,
    'bytes an entry': Math.round((index.memoryBytes / entries) * 10) / 10,
    'resident an entry': Math.round((resident / entries) * 10) / 10,
    'inserts/s': inserts,
    'hits/s': hits,
    'misses/s': misses,
  },
  {
    index: 'lmdb',
    entries: lmdbEntries,
    'bytes an entry': Math.round(lmdbBytes / lmdbEntries),
    'resident an entry': Number.NaN,
    'inserts/s': lmdbInserts,
    'hits/s': lmdbHits,
    'misses/s': Number.NaN,
  },
]);
console.log(`${found} found`);
