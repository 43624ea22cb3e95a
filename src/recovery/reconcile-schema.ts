import { z } from 'zod';
import { flag, list, timeMs } from '../lib/fields.ts';

/** What people ask of and hear from the reconciler. */
export const reconcileRequest = z.strictObject({
  dryRun: flag.default(false).describe('Say what would be done and change nothing.'),
  force: flag
    .default(false)
    .describe(
      'Also detach disks though no agent tells whether they are used, drop exports that ' +
        'clients beyond our hosts may have mounted once they are silent, and discard what unknown recoveries wrote. Stops no machine.',
    ),
});
export type ReconcileRequest = z.output<typeof reconcileRequest>;

export const reconcileFinding = z.object({
  kind: z.enum(['machine', 'disk', 'datastore', 'export', 'clone', 'backup', 'recovery']),
  name: z.string(),
  where: z.string().describe('Name of the hypervisor or the proxy.'),
  recovery: z.string().nullable(),
  problem: z.string().describe('Why it is not as it should be.'),
  outcome: z.enum(['mended', 'would mend', 'left', 'failed']),
  note: z.string().describe('What was done, or why not and what to do about it.'),
});
export type ReconcileFinding = z.infer<typeof reconcileFinding>;

export const reconcileReport = z.object({
  atMs: timeMs,
  dryRun: z.boolean(),
  findings: list(reconcileFinding),
  unreachable: list(
    z.object({ kind: z.enum(['proxy', 'hypervisor']), name: z.string(), why: z.string() }),
  ).describe('What could not be looked at; what it may use was left alone.'),
});
export type ReconcileReport = z.infer<typeof reconcileReport>;

export interface ReconcileService {
  /** One pass; a second one waits for the first. */
  reconcile(request: ReconcileRequest): Promise<ReconcileReport>;
}

z.globalRegistry.add(reconcileRequest, { id: 'ReconcileRequest' });
z.globalRegistry.add(reconcileReport, { id: 'ReconcileReport' });
