import { RouseError, toRouseError } from '../../errors.ts';
import type {
  Datastore,
  Hypervisor,
  Inventory,
  PowerState,
  Traces,
} from '../../hypervisors/port.ts';
import type { CloneView, ExportView } from '../../proxy/port.ts';
import type { ReachableProxy } from '../plan.ts';
import type { ReconcileWorld } from './reconcile.ts';

/**
 * What is there, by the id of the recovery that each thing claims to be of. A *claim* is a name; it
 * is *proven* by where the thing points: at an export below the address of one of our proxies whose
 * last part is `Recover-<that proxy>-<id>`. Looking changes nothing.
 */
export interface Seen {
  readonly cases: ReadonlyMap<string, SeenCase>;
  readonly proxies: ReadonlyMap<string, ReachableProxy>;
  readonly hypervisors: ReadonlyMap<string, SeenHypervisor>;
  readonly unreachable: readonly Unreachable[];
}

export interface Unreachable {
  readonly kind: 'proxy' | 'hypervisor';
  readonly id: string;
  readonly name: string;
  readonly why: string;
}

export interface SeenHypervisor {
  readonly id: string;
  readonly name: string;
  readonly driver: Hypervisor;
  readonly inventory: Inventory;
  readonly traces: Traces;
}

/** Everything that claims to be of one recovery. */
export interface SeenCase {
  readonly machines: SeenMachine[];
  /** Attached to machines that are not this recovery's own. */
  readonly disks: SeenDisk[];
  readonly datastores: SeenDatastore[];
  readonly exports: { readonly proxy: ReachableProxy; readonly view: ExportView }[];
  readonly clones: { readonly proxy: ReachableProxy; readonly view: CloneView }[];
}

export interface SeenMachine {
  readonly at: SeenHypervisor;
  readonly id: string;
  readonly name: string;
  readonly power: PowerState;
  /** Its disks on the recovery's export. With none it is production, or not ours. */
  readonly onExport: readonly string[];
}

export interface SeenDisk {
  readonly at: SeenHypervisor;
  readonly machineId: string;
  readonly machineName: string;
  readonly power: PowerState;
  readonly device: string;
}

export interface SeenDatastore {
  readonly at: SeenHypervisor;
  readonly datastore: Datastore;
  /** It is called `rouse-<id>`, as ours are. */
  readonly isNamed: boolean;
  /** It shows the recovery's export. */
  readonly isProven: boolean;
}

export async function look(world: ReconcileWorld): Promise<Seen> {
  const unreachable: Unreachable[] = [];
  const cases = new Map<string, SeenCase>();
  const proxies = await world.proxies();
  const reached = new Map<string, ReachableProxy>();
  await Promise.all(
    proxies.map(async (proxy) => {
      try {
        if (proxy.isAway) throw new RouseError('proxy-unreachable', 'it was not heard of lately');
        await lookAtProxy(proxy, cases);
        reached.set(proxy.name, proxy);
      } catch (error) {
        const why = toRouseError(error, proxy.name).message;
        unreachable.push({ kind: 'proxy', id: proxy.name, name: proxy.name, why });
      }
    }),
  );
  const hypervisors = new Map<string, SeenHypervisor>();
  const addresses = await addressesOf(world, proxies);
  await Promise.all(
    (await world.hypervisors()).map(async ({ id, name }) => {
      try {
        const driver = await world.hypervisor(id);
        const [inventory, traces] = await Promise.all([driver.inventory(), driver.traces()]);
        const at = { id, name, driver, inventory, traces };
        lookAtHypervisor(at, addresses, cases);
        hypervisors.set(id, at);
      } catch (error) {
        const why = toRouseError(error, name).message;
        unreachable.push({ kind: 'hypervisor', id, name, why });
      }
    }),
  );
  return { cases, proxies: reached, hypervisors, unreachable };
}

/** The proxy's own store: what lies there was made by us and nobody else. */
async function lookAtProxy(proxy: ReachableProxy, cases: Map<string, SeenCase>): Promise<void> {
  const [clones, exports] = await Promise.all([proxy.calls.clones(), proxy.calls.exports()]);
  for (const view of clones) {
    const id = idInCloneId(view.cloneId, proxy.name);
    if (id !== undefined) caseOf(cases, id).clones.push({ proxy, view });
  }
  for (const view of exports) {
    const id = idInCloneId(view.cloneId, proxy.name);
    if (id !== undefined) caseOf(cases, id).exports.push({ proxy, view });
  }
}

/** Where each proxy is, or was when a recovery that still holds something began. */
type Addresses = readonly { readonly proxy: string; readonly address: string }[];

async function addressesOf(
  world: ReconcileWorld,
  proxies: readonly ReachableProxy[],
): Promise<Addresses> {
  const active = await world.recoveries.list({ active: true });
  return [
    ...proxies.flatMap(({ name, address, addresses }) =>
      (addresses ?? [address]).map((one) => ({ proxy: name, address: one })),
    ),
    ...active.flatMap(({ proxy, proxyAddress: address }) =>
      proxy === null || address === null ? [] : [{ proxy, address }],
    ),
  ];
}

function lookAtHypervisor(
  at: SeenHypervisor,
  addresses: Addresses,
  cases: Map<string, SeenCase>,
): void {
  for (const datastore of at.inventory.datastores) {
    if (datastore.kind !== 'nfs') continue;
    const shown = idAt(datastore.location, addresses, true);
    const called = /^rouse-([a-z0-9]+)$/u.exec(datastore.name)?.[1];
    for (const id of new Set([shown, called])) {
      if (id === undefined) continue;
      const claim = { isNamed: called === id, isProven: shown === id };
      caseOf(cases, id).datastores.push({ at, datastore, ...claim });
    }
  }
  const disks = at.traces.disks.map((disk) => ({
    ...disk,
    recovery: idAt(disk.location, addresses, false),
  }));
  for (const { id, name, power, mark } of at.traces.machines) {
    const own = disks.filter((disk) => disk.machineId === id && disk.recovery === mark);
    const onExport = own.map(({ location }) => location);
    caseOf(cases, mark).machines.push({ at, id, name, power, onExport });
  }
  for (const { recovery, machineId, machineName, power, device } of disks) {
    if (recovery === undefined) continue;
    const found = caseOf(cases, recovery);
    const isItsOwn = found.machines.some((one) => one.at.id === at.id && one.id === machineId);
    if (!isItsOwn) found.disks.push({ at, machineId, machineName, power, device });
  }
}

/** `Recover-<proxy>-<id>`. */
function idInCloneId(cloneId: string, proxy: string): string | undefined {
  const start = `Recover-${proxy}-`;
  if (!cloneId.startsWith(start)) return undefined;
  const id = cloneId.slice(start.length);
  return /^[a-z0-9]+$/u.test(id) ? id : undefined;
}

/** The recovery whose export `server:/mtree/Recover-<proxy>-<id>` is, or holds. */
function idAt(location: string, addresses: Addresses, isWhole: boolean): string | undefined {
  for (const { proxy, address } of addresses) {
    if (!location.startsWith(`${address}:/`)) continue;
    const [, , cloneId = '', ...rest] = location.slice(address.length + 1).split('/');
    if (isWhole !== (rest.length === 0)) continue;
    const id = idInCloneId(cloneId, proxy);
    if (id !== undefined) return id;
  }
  return undefined;
}

function caseOf(cases: Map<string, SeenCase>, id: string): SeenCase {
  const known = cases.get(id);
  if (known !== undefined) return known;
  const fresh: SeenCase = { machines: [], disks: [], datastores: [], exports: [], clones: [] };
  cases.set(id, fresh);
  return fresh;
}

export const nothingSeen: SeenCase = {
  machines: [],
  disks: [],
  datastores: [],
  exports: [],
  clones: [],
};
