import { openCatalog, type Catalog } from '../catalog/catalog.ts';
import { savesetView } from '../catalog/catalog-service.ts';
import { type Database, openDatabase } from '../database/database.ts';
import type { Hypervisor } from '../hypervisors/port.ts';
import type { Clock } from '../lib/clock.ts';
import { systemRandom } from '../lib/random.ts';
import { pick } from '../lib/text.ts';
import { fileLevelRecovery } from '../recovery/flr.ts';
import { fullRestore } from '../recovery/full-restore.ts';
import { instantAccess } from '../recovery/instant-access.ts';
import { listenToLeases } from '../recovery/lease.ts';
import type { Recovery } from '../recovery/schema.ts';
import { inputOf, Recoveries, type RecoveryDesk } from '../recovery/service.ts';
import { memoryPlacement } from './memory-placement.ts';
import type { Saveset } from '../vault/api.ts';
import type { Engine } from '../workflows/api.ts';
import { createEngine } from '../workflows/engine.ts';

/** Recoveries on a real catalog and engine, with what tests put in the place of everything else. */
export interface RecoveryBench {
  readonly catalog: Catalog;
  readonly recoveries: Recoveries;
  readonly engine: Engine;
  readonly desk: RecoveryDesk;
  /** What people were told: level, kind and message. */
  readonly told: readonly string[];
  /** The recovery once it has come to that state. */
  until(id: string, state: Recovery['state']): Promise<Recovery>;
  close(): Promise<void>;
}

export interface BenchParts {
  /** The catalog's file. */
  readonly path: string;
  readonly clock: Clock;
  readonly saveset: Saveset;
  readonly hypervisor: Hypervisor;
  /** Replaces parts of the desk. */
  desk(catalog: Catalog, database: Database): Pick<RecoveryDesk, 'proxies'> & Partial<RecoveryDesk>;
}

export async function openRecoveryBench(parts: BenchParts): Promise<RecoveryBench> {
  const { path, clock, saveset, hypervisor } = parts;
  const database = await openDatabase({ path, clock });
  const catalog = openCatalog(database, clock);
  const engine = createEngine({ database, clock, random: systemRandom, report: () => undefined });
  const told: string[] = [];
  const given = parts.desk(catalog, database);
  const desk: RecoveryDesk = {
    clock,
    random: systemRandom,
    transaction: (work) => database.transaction(work),
    engine,
    recoveries: catalog.recoveries,
    device: async () => ({ id: 'local', name: 'local', address: '/memory' }),
    hypervisor: async () => hypervisor,
    tell: async (_id, level, kind, message) => void told.push(`${level} ${kind}: ${message}`),
    keepPicture: async () => undefined,
    picture: async () => undefined,
    chooseSaveset: async () => saveset,
    chooseHypervisor: async () => 'memory',
    findMachine: async (reference) => {
      const { machines } = await hypervisor.inventory();
      return { ...pick('machine', reference, machines), hypervisorId: 'memory' };
    },
    hypervisorName: async () => 'memory',
    savesetView,
    savesetStored: async () => undefined,
    placement: memoryPlacement(async () => {
      const proxies = await given.proxies();
      return proxies.map(({ name, address }) => ({ name, addresses: [address] }));
    }),
    ...given,
  };
  const recoveries = new Recoveries(desk);
  const { open, relocate, close } = instantAccess(desk);
  for (const workflow of [open, relocate, close, fileLevelRecovery(desk), fullRestore(desk)])
    engine.register(workflow as typeof open);
  recoveries.listen();
  listenToLeases(
    desk,
    async (id) => inputOf(await catalog.recoveries.get(id)),
    (id) => recoveries.hostId(id),
  );
  await engine.start();
  return {
    catalog,
    recoveries,
    engine,
    desk,
    told,
    until: async (id, state) => {
      const ended: readonly string[] = [state, 'failed', 'done', 'cancelled'];
      for await (const view of recoveries.watch(id, new AbortController().signal)) {
        if (view.state === state) return view;
        if (ended.includes(view.state)) {
          throw new Error(`recovery ${id} is ${view.state}: ${view.error?.message}`);
        }
      }
      throw new Error(`recovery ${id} never was ${state}`);
    },
    close: async () => {
      await engine.stop();
      await database.close();
    },
  };
}
