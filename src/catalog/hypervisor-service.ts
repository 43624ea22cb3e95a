import { RouseError, toRouseError } from '../errors.ts';
import type { Hypervisor, Inventory, TestReport } from '../hypervisors/port.ts';
import type { Clock } from '../lib/clock.ts';
import type { Random } from '../lib/random.ts';
import { pick } from '../lib/text.ts';
import type { HypervisorRow, Hypervisors as HypervisorRows } from './hypervisors.ts';
import type { HypervisorRequest, HypervisorService, HypervisorView } from './schema.ts';
import { type VsphereOptions, vsphereOptions } from './vsphere-request.ts';

/** What a driver is made from: the row's own words. */
export interface HypervisorOptions {
  readonly datastores: readonly { readonly name: string; readonly path: string }[];
  readonly vsphere?: VsphereOptions;
}

/** What was added: enough to connect to, with its secret. */
export interface HypervisorSpec {
  readonly kind: string;
  readonly uri: string;
  readonly options: HypervisorOptions;
}

export interface HypervisorDesk {
  readonly clock: Clock;
  readonly random: Random;
  readonly rows: HypervisorRows;
  connect(id: string, spec: HypervisorSpec): Promise<Hypervisor>;
  /** Where passwords are kept, by the hypervisor's id. */
  readonly secrets: {
    put(id: string, secret: string): Promise<void>;
    remove(id: string): Promise<void>;
  };
  /** Names of what still runs on it. */
  usersOf(hypervisorId: string): Promise<readonly string[]>;
}

/** Hypervisors by name, one driver each, made when first needed. */
export class HypervisorCatalog implements HypervisorService {
  readonly #desk: HypervisorDesk;
  readonly #drivers = new Map<string, Hypervisor>();
  readonly #seen = new Map<string, { readonly ok: boolean; readonly atMs: number }>();

  constructor(desk: HypervisorDesk) {
    this.#desk = desk;
  }

  async rows(): Promise<readonly HypervisorRow[]> {
    return this.#desk.rows.list();
  }

  async driver(id: string): Promise<Hypervisor> {
    const known = this.#drivers.get(id);
    if (known !== undefined) return known;
    const row = (await this.rows()).find((candidate) => candidate.id === id);
    if (row === undefined) throw new RouseError('not-found', `hypervisor ${id} was removed`);
    const driver = await this.#desk.connect(id, { ...row, options: optionsOf(row) });
    this.#drivers.set(id, driver);
    return driver;
  }

  async row(reference: string): Promise<HypervisorRow> {
    return pick('hypervisor', reference, await this.rows(), 'rouse hypervisor list');
  }

  async list(): Promise<readonly HypervisorView[]> {
    return (await this.rows()).map((row) => this.#view(row));
  }

  async get(reference: string): Promise<HypervisorView> {
    return this.#view(await this.row(reference));
  }

  #view(row: HypervisorRow): HypervisorView {
    const seen = this.#seen.get(row.id);
    return {
      id: row.id,
      name: row.name,
      kind: row.kind,
      uri: row.uri,
      datastores: optionsOf(row).datastores,
      ...trustView(optionsOf(row).vsphere),
      createdMs: row.addedMs,
      state: seen === undefined ? 'unknown' : seen.ok ? 'reachable' : 'unreachable',
      checkedMs: seen?.atMs ?? null,
    };
  }

  async add(request: HypervisorRequest): Promise<HypervisorView> {
    const { random, clock, rows } = this.#desk;
    const taken = (await this.rows()).find(({ name }) => name === request.name);
    if (taken !== undefined) {
      throw new RouseError(
        'already-exists',
        `a hypervisor named ${request.name} is known already`,
        {
          advice: `It is ${taken.uri}. Choose another name.`,
        },
      );
    }
    const id = random.id();
    const { name, kind, uri, datastores } = request;
    const isVsphere = kind === 'vsphere';
    const options: HypervisorOptions = {
      datastores,
      ...(isVsphere ? { vsphere: await vsphereOptions(request) } : {}),
    };
    try {
      if (isVsphere) await this.#desk.secrets.put(id, request.password ?? '');
      const driver = await this.#desk.connect(id, { kind, uri, options });
      const report = await driver.test();
      if (!report.ok) {
        await driver.close?.();
        throw refusal(name, report);
      }
      await rows.put({ id, name, kind, uri, options, addedMs: clock.now() });
      this.#drivers.set(id, driver);
    } catch (error) {
      await this.#desk.secrets.remove(id);
      throw error;
    }
    this.#seen.set(id, { ok: true, atMs: clock.now() });
    return this.get(id);
  }

  async remove(reference: string): Promise<void> {
    const row = await this.row(reference);
    const users = await this.#desk.usersOf(row.id);
    if (users.length > 0) {
      throw new RouseError('busy', `${row.name} still has work of ours: ${users.join(', ')}`, {
        advice: 'End it first: rouse cancel NAME',
      });
    }
    await this.#desk.rows.remove(row.id);
    const driver = this.#drivers.get(row.id);
    this.#drivers.delete(row.id);
    await driver?.close?.();
    await this.#desk.secrets.remove(row.id);
  }

  /** Logs out everywhere. */
  async close(): Promise<void> {
    const drivers = [...this.#drivers.values()];
    this.#drivers.clear();
    await Promise.allSettled(drivers.map((driver) => driver.close?.()));
  }

  async test(reference: string): Promise<TestReport> {
    const row = await this.row(reference);
    const driver = await this.driver(row.id);
    const report = await driver.test();
    this.#seen.set(row.id, { ok: report.ok, atMs: this.#desk.clock.now() });
    return report;
  }

  async inventory(reference: string): Promise<Inventory> {
    const row = await this.row(reference);
    return this.inventoryOf(row.id);
  }

  async inventoryOf(id: string): Promise<Inventory> {
    const driver = await this.driver(id);
    const atMs = this.#desk.clock.now();
    try {
      const inventory = await driver.inventory();
      this.#seen.set(id, { ok: true, atMs });
      return inventory;
    } catch (error) {
      this.#seen.set(id, { ok: false, atMs });
      throw toRouseError(error, `hypervisor ${id}`);
    }
  }
}

function refusal(name: string, report: TestReport): RouseError {
  const messages = report.problems.map(({ message }) => message);
  const advice = report.problems.map((problem) => problem.advice).join(' ');
  return new RouseError('hypervisor-error', `${name} cannot be used: ${messages.join('; ')}`, {
    advice: advice || 'Look at what it said.',
    details: { problems: report.problems },
  });
}

function optionsOf(row: HypervisorRow): HypervisorOptions {
  // Written by `add`, whose request was checked against schema.ts.
  return row.options as HypervisorOptions;
}

function trustView(options: VsphereOptions | undefined): { user?: string; trust?: string } {
  if (options === undefined) return {};
  const { user, fingerprint } = options;
  const trust = fingerprint === undefined ? 'its authority' : `fingerprint ${fingerprint}`;
  return { user, trust };
}
