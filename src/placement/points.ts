/**
 * What placement (scoring.ts) gives and takes. What the network proves outweighs all that is
 * merely convenient: a proxy in the host's network (40) beats an idle, warm one behind a router
 * (5 + 10 + 8) in every case that the past does not speak against.
 */
export const points = {
  sameMachine: 45,
  sameAddress: 42,
  sameNetwork: 40,
  routed: 5,
  loopbackElsewhere: -60,
  probeAnswers: 15,
  mountedBefore: 25,
  mountedInCluster: 12,
  mountFailed: -35,
  /** Where labels say that a proxy belongs: host, cluster, hypervisor. */
  samePlace: 15,
  /** Labels that a request prefers. */
  preferred: 20,
  idle: 10,
  warm: 8,
  lowSpace: -15,
  lowSpaceShare: 0.1,
  freeSlots: 5,
  recoveryEach: 3,
  recoveriesMost: 15,
} as const;
