/* The kernels of the optimiser and of the residual connections; see kernels.h for the columns. */
/* Kinds whose maps come from logits, as maps_tokens (hc_maps.h) makes them. */
#define BK_CPU_LOGITS_KINDS \
  (BK_KIND(BK_HC_MHC) | BK_KIND(BK_HC_MHC_LITE) | BK_KIND(BK_HC_IHC) | BK_KIND(BK_HC_HEAD))

#define BK_CPU_KERNELS_HC(K, P, M)                                                \
  P(SUMSQ, BK_CPU_CT, sumsq)                                                      \
  K(CLIP, BK_CPU_CT, clip)                                                        \
  K(ADAMW, BK_CPU_CT, adamw)                                                      \
  K(HC_EXPAND, BK_CPU_ST, hc_expand)                                              \
  K(HC_COLLAPSE, BK_CPU_ST, hc_collapse)                                          \
  K(HC_RMS, BK_CPU_ST, hc_rms)                                                    \
  K(HC_RMS_BWD, BK_CPU_ST, hc_rms_bwd)                                            \
  K(HC_LOGITS, BK_CPU_CT, hc_logits)                                              \
  P(HC_LOGITS_BWD, BK_CPU_CT, hc_logits_bwd)                                      \
  K(HC_GATES, BK_CPU_CT, hc_gates)                                                \
  K(HC_GATES_BWD, BK_CPU_CT, hc_gates_bwd)                                        \
  K(SINKHORN, BK_CPU_CT, sinkhorn)                                                \
  K(SINKHORN_BWD, BK_CPU_CT, sinkhorn_bwd)                                        \
  P(HC_PERM, BK_CPU_CT, hc_perm)                                                  \
  P(HC_PERM_BWD, BK_CPU_CT, hc_perm_bwd)                                          \
  K(HC_KRON, BK_CPU_CT, hc_kron)                                                  \
  K(HC_KRON_BWD, BK_CPU_CT, hc_kron_bwd)                                          \
  K(HC_TANH, BK_CPU_CT, hc_tanh)                                                  \
  P(HC_TANH_BWD, BK_CPU_CT, hc_tanh_bwd)                                          \
  K(HC_PRE, BK_CPU_ST, hc_pre)                                                    \
  K(HC_PRE_BWD, BK_CPU_ST, hc_pre_bwd)                                            \
  K(HC_RES, BK_CPU_ST, hc_res)                                                    \
  K(HC_RES_BWD, BK_CPU_ST, hc_res_bwd)                                            \
  K(HC_POST, BK_CPU_ST, hc_post)                                                  \
  K(HC_POST_BWD, BK_CPU_ST, hc_post_bwd)                                          \
  P(HC_PROJECT, BK_CPU_ST, hc_project)                                            \
  P(HC_PROJECT_BWD, BK_CPU_ST, hc_project_bwd)                                    \
  M(HC_MAPS, BK_CPU_CT, hc_maps, BK_CPU_LOGITS_KINDS | BK_KIND(BK_HC_HC))         \
  M(HC_MAPS_BWD, BK_CPU_CT, hc_maps_bwd, BK_CPU_LOGITS_KINDS | BK_KIND(BK_HC_HC)) \
  K(HC_PRE_NORM, BK_CPU_ST, hc_pre_norm)                                          \
  P(HC_PRE_NORM_BWD, BK_CPU_ST, hc_pre_norm_bwd)                                  \
  K(HC_POST_RES, BK_CPU_ST, hc_post_res)                                          \
  K(HC_POST_RES_BWD, BK_CPU_ST, hc_post_res_bwd)                                  \
  M(HC_MERGE_MIX, BK_CPU_ST, hc_merge_mix, BK_CPU_LOGITS_KINDS)                   \
  M(HC_MERGE_MIX_BWD, BK_CPU_ST, hc_merge_mix_bwd, BK_CPU_LOGITS_KINDS)
