/**
 * A vCenter for tests and the demo, in a process of its own. `startPlainVcenter` is govmomi's
 * simulator as Debian packages it: a third party's word, but nothing behind it is real.
 * `startStandIn` (stand-in.ts) has hosts behind it that mount, boot and copy: our word, as far as
 * it goes beyond the simulator's. README.md tells what each does otherwise than a vCenter.
 */
import { join } from 'node:path';
import { buildGo } from './build.ts';
import { launch, type Vcenter } from './launch.ts';

export type { Vcenter } from './launch.ts';
export { startStandIn, writeMachine } from './stand-in.ts';
export type { Inventory, StandIn } from './stand-in.ts';

export interface PlainVcenterOptions {
  /** Its working directory: the `localPath` of a NAS datastore must exist in it (simulator). */
  readonly directory: string;
  /** Default 1. */
  readonly clusters?: number;
  /** Default 3. */
  readonly hostsPerCluster?: number;
  /** Default 1. */
  readonly standaloneHosts?: number;
  /** Machines of each resource pool, default 2. */
  readonly machines?: number;
  /** A single ESX host instead of a vCenter; sizes other than `machines` do not apply. */
  readonly esx?: boolean;
}

export async function startPlainVcenter(options: PlainVcenterOptions): Promise<Vcenter> {
  const program = await buildGo(join(import.meta.dirname, 'plain'));
  const args = [
    ...['-clusters', String(options.clusters ?? 1), '-hosts', String(options.hostsPerCluster ?? 3)],
    ...['-standalone', String(options.standaloneHosts ?? 1)],
    ...['-machines', String(options.machines ?? 2)],
    ...(options.esx === true ? ['-esx'] : []),
  ];
  const { vcenter } = await launch(program, args, options.directory);
  return vcenter;
}
