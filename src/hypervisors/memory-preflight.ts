import type { Host, TestReport } from './port.ts';

/** A host in memory is fit when it is there and connected. */
export function preflightOf(hosts: readonly Host[], hostId: string): TestReport {
  const host = hosts.find(({ id }) => id === hostId);
  const ok = host?.state === 'connected';
  const message = host === undefined ? `no host ${hostId}` : `host ${host.name} is ${host.state}`;
  const problems = ok ? [] : [{ message, advice: 'Choose another host.' }];
  return { ok, version: 'memory 1', problems, facts: {} };
}
