/* The dialect in OpenCL C 1.2. GROUP and the constants of a kernel come as -D options. */
#define FN static
#define to_f(x) ((float)(x))
#define to_i(x) ((int)(x))
#define to_u(x) ((uint)(x))
#define bits_of(x) as_uint(x)
#define float_of(x) as_float(x)
#define mul_hi_u(a, b) mul_hi((uint)(a), (uint)(b))
#define BLOCK ((int)get_group_id(0) + (int)get_group_id(1) * (int)get_num_groups(0))
#if GROUP == 1
#define LANE 0
#define SYNC()
#define SYNC_ALL()
#else
#define LANE ((int)get_local_id(0))
#define SYNC() barrier(CLK_LOCAL_MEM_FENCE)
#define SYNC_ALL() barrier(CLK_LOCAL_MEM_FENCE | CLK_GLOBAL_MEM_FENCE)
#endif
#define abs_f(x) fabs(x)
