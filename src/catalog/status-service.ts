import type { HypervisorCatalog } from './hypervisor-service.ts';
import { formatBytes } from '../lib/text.ts';
import { catalogLimits } from '../limits.ts';
import type { Proxy, ProxyStatus } from '../proxy/port.ts';
import type { VaultStats } from '../vault/api.ts';
import type { ExportEntry, ExportService, Status, StatusService } from './schema.ts';

export interface StatusDesk {
  readonly server: Status['server'];
  readonly hypervisors: HypervisorCatalog;
  /** The one beside this server. */
  proxy(): Promise<Proxy>;
  /** All, the one beside this server first. */
  proxies(): Promise<
    readonly { readonly name: string; readonly isAway: boolean; readonly calls: Proxy }[]
  >;
  machineCount(): Promise<number>;
  savesetCount(): Promise<number>;
  /** Active recoveries with the warnings they carry. */
  activeRecoveries(): Promise<
    readonly {
      readonly id: string;
      readonly name: string;
      readonly cloneId: string | null;
      readonly warnings: readonly string[];
    }[]
  >;
  runningBackups(): Promise<number>;
  /** Things that the last pass of the reconciler left as they should not be. */
  leftByReconciler(): number;
}

/** The state of the whole on one page; a part that does not answer is a warning, not an error. */
export class StatusBoard implements StatusService, ExportService {
  readonly #desk: StatusDesk;

  constructor(desk: StatusDesk) {
    this.#desk = desk;
  }

  async status(): Promise<Status> {
    const warnings: string[] = [];
    const answer = async <T>(what: string, ask: () => Promise<T>): Promise<T | null> => {
      try {
        return await ask();
      } catch (error) {
        warnings.push(`${what}: ${error instanceof Error ? error.message : String(error)}`);
        return null;
      }
    };
    const proxy = await answer('The proxy does not answer', async () =>
      (await this.#desk.proxy()).status(),
    );
    const vault = await answer('The vault does not answer', async () =>
      (await this.#desk.proxy()).vaultStats(),
    );
    const recoveries = await this.#desk.activeRecoveries();
    warnings.push(...(await this.#awayProxies()));
    warnings.push(...recoveries.flatMap((recovery) => recovery.warnings), ...lowSpace(proxy));
    const left = this.#desk.leftByReconciler();
    if (left > 0) {
      const things = left === 1 ? '1 thing is' : `${left} things are`;
      warnings.push(
        `${things} not as expected at hypervisors or proxies: rouse reconcile --dry-run`,
      );
    }
    return {
      server: this.#desk.server,
      proxy,
      vault: vault satisfies VaultStats | null,
      counts: {
        machines: await this.#desk.machineCount(),
        savesets: await this.#desk.savesetCount(),
        hypervisors: (await this.#desk.hypervisors.rows()).length,
        exports: proxy?.exports ?? 0,
        activeRecoveries: recoveries.length,
        runningBackups: await this.#desk.runningBackups(),
      },
      warnings,
    };
  }

  /** The one beside this server, which is the first, is asked itself. */
  async #awayProxies(): Promise<readonly string[]> {
    const [, ...others] = await this.#desk.proxies();
    return others
      .filter(({ isAway }) => isAway)
      .map(({ name }) => `Proxy ${name} does not answer: rouse proxy show ${name}`);
  }

  async list(): Promise<readonly ExportEntry[]> {
    const proxies = await this.#desk.proxies();
    const each = proxies.map(async ({ name, isAway, calls }) => {
      // One that is away answers nothing, and its exports with it; one proxy alone must say so.
      const exports = isAway && proxies.length > 1 ? [] : await calls.exports();
      return exports.map((entry) => ({ ...entry, proxy: name }));
    });
    const exports = (await Promise.all(each)).flat();
    const recoveries = await this.#desk.activeRecoveries();
    return exports.map((entry) => {
      const owner = recoveries.find(({ cloneId }) => cloneId === entry.cloneId);
      return {
        ...entry,
        recovery: owner === undefined ? null : { id: owner.id, name: owner.name },
      };
    });
  }
}

/** Said before a write fails, not when (datastore.md: full disk). */
function lowSpace(proxy: ProxyStatus | null): string[] {
  if (proxy === null) return [];
  const { freeBytes, totalBytes } = proxy.space;
  if (freeBytes >= totalBytes * catalogLimits.spaceWarningShare) return [];
  return [
    `Only ${formatBytes(freeBytes)} are free where vault and clones lie: machines that run from ` +
      'their backup get "no space left" when that is used up. Free some, or relocate them.',
  ];
}
