import * as z from 'zod';
import { RouseError } from '../errors.ts';
import type { ConfigureSpec, ConfiguredMachine } from './port.ts';

/** The configuration text of a machine in memory: JSON, with what the contract can see. */
const shape = z.object({
  uuid: z.string().optional(),
  mark: z.string().optional(),
  disks: z
    .array(
      z.object({
        name: z.string(),
        source: z.string(),
        sizeBytes: z.number(),
        onDatastore: z.boolean(),
      }),
    )
    .default([]),
  networks: z
    .array(z.object({ mac: z.string(), network: z.string(), connected: z.boolean() }))
    .default([]),
});

export type MemoryConfiguration = z.infer<typeof shape>;

export function parseMemoryConfiguration(text: string): MemoryConfiguration {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new RouseError('bad-request', 'the configuration is not JSON', { cause: error });
  }
  const parsed = shape.safeParse(value);
  if (parsed.success) return parsed.data;
  throw new RouseError('bad-request', `the configuration: ${z.prettifyError(parsed.error)}`);
}

/** Configurations of other hypervisors are taken for empty ones, as a foreign manager would. */
export function writeMemoryConfiguration(spec: ConfigureSpec): ConfiguredMachine {
  const { configuration, identity, datastore } = spec;
  const isOurs = configuration?.trimStart().startsWith('{') ?? false;
  const saved = parseMemoryConfiguration(isOurs ? (configuration ?? '{}') : '{}');
  const written: MemoryConfiguration = {
    uuid: identity.keep ? (saved.uuid ?? identity.uuid) : identity.uuid,
    mark: spec.mark,
    disks: spec.disks.map(({ name, file, sizeBytes, local }) => ({
      name,
      source: local?.path ?? `${datastore.server}:${datastore.path}/${spec.folder}/${file}`,
      sizeBytes,
      onDatastore: local === undefined,
    })),
    networks: saved.networks.map((network, index) => ({
      ...network,
      mac: identity.keep ? network.mac : (identity.macs[index] ?? network.mac),
      connected: spec.connectNetworks,
    })),
  };
  const changes = [`named ${spec.name}`, `disks lie on ${datastore.name}`];
  if (!spec.connectNetworks) changes.push('network cards are disconnected');
  return { fileName: 'memory.json', text: JSON.stringify(written, undefined, 2), changes };
}
