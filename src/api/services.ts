import type { BackupService } from '../backup/schema.ts';
import type { CatalogService, EventService, ExportService } from '../catalog/schema.ts';
import type { HypervisorService, StatusService, VaultService } from '../catalog/schema.ts';
import type { ReconcileService } from '../recovery/reconcile-schema.ts';
import type { ProxyService, ProxyTokenService } from '../placement/schema.ts';
import type { RecoveryService } from '../recovery/schema.ts';

/** Everything the API can ask for; main.ts makes it and hands it to `createApi`. */
export interface Services {
  readonly recoveries: RecoveryService;
  readonly reconciler: ReconcileService;
  readonly backups: BackupService;
  readonly catalog: CatalogService;
  readonly hypervisors: HypervisorService;
  readonly exports: ExportService;
  readonly events: EventService;
  readonly proxies: ProxyService;
  readonly proxyTokens: ProxyTokenService;
  readonly vault: VaultService;
  readonly status: StatusService;
  /** The text of /metrics: prom-client's `register.metrics()`. */
  metrics(): Promise<string>;
}
