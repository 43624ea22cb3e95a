import { z } from 'zod';
import { RouseError } from '../errors.ts';
import type { BlobStore } from '../blobs/port.ts';
import { vaultLimits } from '../limits.ts';
import type { Random } from '../lib/random.ts';
import { openJson, peekJson, sealJson, isObject } from './sealed-json.ts';

/** Raised when older programs could misread the vault; docs/format.md keeps the history. */
export const formatVersion = 1;

export const names = {
  config: 'vault.json',
  packs: 'packs/',
  savesets: 'savesets/',
  mtrees: 'mtrees/',
  pack: (name: string) => `packs/${name}`,
  saveset: (id: string) => `savesets/${id}.json`,
  mtree: (name: string) => `mtrees/${name}.json`,
} as const;

export interface VaultConfig {
  readonly version: number;
  readonly id: string;
  readonly blockBytes: number;
  readonly packBytes: number;
  readonly key: Buffer;
}

const stored = z.object({
  format: z.literal('rouse-vault'),
  version: z.number().int().positive(),
  id: z.string().regex(/^[0-9a-f]{32}$/),
  blockBytes: z.number().int(),
  packBytes: z.number().int(),
  hash: z.object({ name: z.literal('blake3-keyed'), key: z.string().regex(/^[0-9a-f]{64}$/) }),
  checksum: z.literal('xxh3-64'),
  encryption: z.literal('none'),
});

export function newConfig(random: Random, blockBytes: number, packBytes: number): VaultConfig {
  checkBlockBytes(blockBytes);
  const id = random.bytes(16).toString('hex');
  return { version: formatVersion, id, blockBytes, packBytes, key: random.bytes(32) };
}

function checkBlockBytes(blockBytes: number): void {
  const { blockBytesMin, blockBytesMax } = vaultLimits;
  const good =
    blockBytes >= blockBytesMin &&
    blockBytes <= blockBytesMax &&
    Number.isInteger(Math.log2(blockBytes));
  if (!good)
    throw new RouseError(
      'bad-request',
      `a block of ${blockBytes} bytes: it must be a power of two from 4 KiB to 1 MiB`,
    );
}

export function encodeConfig(config: VaultConfig): Buffer {
  return sealJson({
    format: 'rouse-vault',
    version: config.version,
    id: config.id,
    blockBytes: config.blockBytes,
    packBytes: config.packBytes,
    hash: { name: 'blake3-keyed', key: config.key.toString('hex') },
    checksum: 'xxh3-64',
    encryption: 'none',
  } satisfies z.infer<typeof stored>);
}

export function decodeConfig(bytes: Buffer, place: string): VaultConfig {
  const where = `${place}/${names.config}`;
  refuseNewer(peekJson(bytes), where);
  const parsed = stored.safeParse(openJson(bytes, where));
  if (!parsed.success)
    throw new RouseError(
      'corrupt-data',
      `${where} is no configuration of a vault: ${z.prettifyError(parsed.error)}`,
    );
  const { version, id, blockBytes, packBytes, hash } = parsed.data;
  checkBlockBytes(blockBytes);
  return { version, id, blockBytes, packBytes, key: Buffer.from(hash.key, 'hex') };
}

function refuseNewer(body: unknown, where: string): void {
  const version = isObject(body) ? body['version'] : undefined;
  if (typeof version === 'number' && version > formatVersion)
    throw new RouseError(
      'newer-format',
      `${where} has format ${version}; this program knows formats up to ${formatVersion}`,
    );
}

export async function readConfig(store: BlobStore): Promise<VaultConfig> {
  const stat = await store.stat(names.config);
  if (stat === undefined)
    throw new RouseError('not-found', `there is no vault in ${store.place}`, {
      advice: 'Create one: rouse vault create.',
    });
  return decodeConfig(await store.get(names.config), store.place);
}
