import { parseArgs } from 'node:util';
import { openDirectoryStore } from '../src/blobs/directory-store.ts';
import { isRouseError } from '../src/errors.ts';
import { openDisk } from '../src/formats/open-disk.ts';
import { systemClock } from '../src/lib/clock.ts';
import { nodeFiles } from '../src/lib/node-files.ts';
import { systemRandom } from '../src/lib/random.ts';
import { ingestDisks } from '../src/proxy/ingest.ts';
import { createVault, openVault } from '../src/vault/vault.ts';

/**
 * One backup of one image into a vault, from start to end of the process, so that it is measured as
 * the peers are. Prints what it cost as JSON.
 *
 *   node benchmarks/take-in-rouse.ts --vault DIR --image FILE --codec lz4|zstd
 */
const { values } = parseArgs({
  options: {
    vault: { type: 'string' },
    image: { type: 'string' },
    codec: { type: 'string', default: 'lz4' },
  },
});
const { vault: directory, image } = values;
if (directory === undefined || image === undefined) throw new Error('--vault DIR --image FILE');
const codec = values.codec === 'zstd' ? 'zstd' : 'lz4';

const store = await openDirectoryStore({
  files: nodeFiles,
  directory: `${directory}/blobs`,
  random: systemRandom,
});
await createVault(store, { random: systemRandom }).catch((error: unknown) => {
  if (!isRouseError(error, 'already-exists')) throw error;
});
const vault = await openVault({
  store,
  index: { files: nodeFiles, directory: `${directory}/index` },
  cacheBytes: 64 * 1_048_576,
  clock: systemClock,
  random: systemRandom,
});
await vault.createMtree(codec, codec).catch((error: unknown) => {
  if (!isRouseError(error, 'already-exists')) throw error;
});
const writer = await vault.begin(codec);
const disk = await openDisk(image, { format: 'raw' });
const progress = { signal: new AbortController().signal, update: () => undefined };
await ingestDisks(writer, [{ name: 'vda', source: image, disk }], vault.blockBytes, progress);
await disk.close();
const saveset = await writer.seal({
  machine: { id: 'bench', name: 'bench' },
  takenAtMs: systemClock.now(),
  kind: 'full',
  consistency: 'offline',
  labels: {},
});
console.log(JSON.stringify(saveset.cost));
await vault.close();
